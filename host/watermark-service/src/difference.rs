//! What marking changed, made visible.

use anyhow::{Result, anyhow, bail};
use png::{BitDepth, ColorType, Info};

use crate::content::ContentError;
use crate::mark::picture::{self, Picture};

/// The absolute difference of two PNGs in each of red, green and blue, times `gain`, as a PNG of 8 bits: black where
/// they agree. Two pictures of 16 bits are compared in steps of 16 bits, others in steps of 8.
///
/// # Errors
/// A file is not a PNG, or the pictures have different sizes.
pub(crate) fn amplified(a: &[u8], b: &[u8], gain: u32) -> Result<Vec<u8>> {
    let (a, b) = (decode(a)?, decode(b)?);
    if a.info.size() != b.info.size() {
        let ((aw, ah), (bw, bh)) = (a.info.size(), b.info.size());
        bail!("the pictures differ in size: {aw}x{ah} and {bw}x{bh}");
    }
    let fine = a.info.bit_depth == BitDepth::Sixteen && b.info.bit_depth == BitDepth::Sixteen;
    let (a_rgb, b_rgb) = (rgb(&a, fine), rgb(&b, fine));
    let step = |(a, b): (u16, u16)| u32::from(a.abs_diff(b)).saturating_mul(gain).min(255) as u8;
    let samples = a_rgb.zip(b_rgb).map(step).collect();
    let mut info = Info::with_size(a.info.width, a.info.height);
    (info.color_type, info.bit_depth) = (ColorType::Rgb, BitDepth::Eight);
    Picture { info, samples }.encode().map_err(readable)
}

fn decode(content: &[u8]) -> Result<Picture> {
    if !picture::is_png(content) {
        bail!("only PNG images can be compared");
    }
    Picture::decode(content).map_err(readable)
}

fn readable(error: picture::PictureError) -> anyhow::Error {
    anyhow!(ContentError::from(error))
}

/// Red, green, blue of each pixel. 16-bit samples keep all bits if `fine`, otherwise the upper eight.
fn rgb(picture: &Picture, fine: bool) -> impl Iterator<Item = u16> {
    let (pixel, colours, sample) = picture.layout();
    let number = move |bytes: &[u8]| match bytes {
        [high, low] if fine => u16::from_be_bytes([*high, *low]),
        _ => u16::from(bytes[0]),
    };
    picture.samples.chunks_exact(pixel).flat_map(move |bytes| {
        let channel = |c: usize| number(&bytes[c % colours * sample..][..sample]);
        [channel(0), channel(1), channel(2)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::Mark;

    fn flat(width: u32, color: ColorType, depth: BitDepth, value: u8) -> Vec<u8> {
        let mut info = Info::with_size(width, 32);
        (info.color_type, info.bit_depth) = (color, depth);
        let bytes = width as usize * 32 * color.samples() * if depth == BitDepth::Sixteen { 2 } else { 1 };
        Picture { info, samples: vec![value; bytes] }.encode().unwrap()
    }

    #[test]
    fn a_mark_shows_as_steps_of_the_gain_around_black() {
        for depth in [BitDepth::Eight, BitDepth::Sixteen] {
            let original = flat(32, ColorType::Rgba, depth, 100);
            let marked = picture::embed(&original, &Mark::new("f", "u").unwrap()).unwrap();
            let difference = Picture::decode(&amplified(&original, &marked, 64).unwrap()).unwrap();
            assert_eq!((difference.info.color_type, difference.info.bit_depth), (ColorType::Rgb, BitDepth::Eight));
            let changed = difference.samples.iter().filter(|v| **v == 64).count();
            assert_eq!(difference.samples.iter().filter(|v| **v == 0).count(), difference.samples.len() - changed);
            assert!((1000..2000).contains(&changed), "about half of 3072 samples change, not {changed}");
        }
    }

    #[test]
    fn gray_is_compared_with_rgb_and_a_large_difference_is_white() {
        let gray = flat(32, ColorType::Grayscale, BitDepth::Eight, 0);
        let rgb = flat(32, ColorType::Rgb, BitDepth::Eight, 200);
        let difference = Picture::decode(&amplified(&gray, &rgb, 64).unwrap()).unwrap();
        assert!(difference.samples.iter().all(|v| *v == 255));
        assert_eq!(difference.samples.len(), 32 * 32 * 3);
    }

    #[test]
    fn pictures_of_different_sizes_and_other_files_are_refused() {
        let (a, b) = (flat(32, ColorType::Rgb, BitDepth::Eight, 0), flat(33, ColorType::Rgb, BitDepth::Eight, 0));
        assert_eq!(amplified(&a, &b, 64).unwrap_err().to_string(), "the pictures differ in size: 32x32 and 33x32");
        assert!(amplified(&a, b"text", 64).unwrap_err().to_string().contains("PNG"));
    }
}
