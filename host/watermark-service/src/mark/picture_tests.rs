use png::{DeflateCompression, Filter};
use proptest::prelude::*;

use super::*;
use crate::mark::tests::any_mark;

fn mark() -> Mark {
    Mark::new("report-7", "alice").unwrap()
}

fn picture(width: u32, height: u32, color: ColorType, depth: BitDepth, samples: Vec<u8>) -> Picture {
    let mut info = Info::with_size(width, height);
    (info.color_type, info.bit_depth) = (color, depth);
    Picture { info, samples }
}

/// Noise, a flat colour, or a gradient, of a size for any mark, in each kind that is marked as it is.
fn any_picture() -> impl Strategy<Value = Picture> {
    let color =
        prop::sample::select(vec![ColorType::Grayscale, ColorType::GrayscaleAlpha, ColorType::Rgb, ColorType::Rgba]);
    let depth = prop::sample::select(vec![BitDepth::Eight, BitDepth::Sixteen]);
    (91..130u32, 91..130u32, color, depth, any::<u64>(), 0..3).prop_map(|(width, height, color, depth, seed, kind)| {
        let line = color.samples() * if depth == BitDepth::Sixteen { 2 } else { 1 } * width as usize;
        let sample = |i: usize| match kind {
            0 => mix(seed ^ i as u64).to_le_bytes()[0],
            1 => seed.to_le_bytes()[0],
            _ => (i % line / 4).to_le_bytes()[0],
        };
        picture(width, height, color, depth, (0..line * height as usize).map(sample).collect())
    })
}

/// As another program would write it.
fn encode_otherwise(picture: &Picture, filter: Filter, compression: DeflateCompression) -> Vec<u8> {
    let mut content = Vec::new();
    let mut encoder = Encoder::new(&mut content, picture.info.width, picture.info.height);
    encoder.set_color(picture.info.color_type);
    encoder.set_depth(picture.info.bit_depth);
    encoder.set_deflate_compression(compression);
    encoder.set_filter(filter);
    encoder.write_header().unwrap().write_image_data(&picture.samples).unwrap();
    content
}

/// The picture with its pixels converted one by one.
fn convert(from: &Picture, color: ColorType, pixel: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let samples = from.samples.chunks_exact(from.layout().0).flat_map(pixel).collect();
    picture(from.info.width, from.info.height, color, from.info.bit_depth, samples).encode().unwrap()
}

fn noise(width: u32, height: u32, color: ColorType) -> Picture {
    let samples = (0..width as u64 * height as u64 * color.samples() as u64).map(|i| mix(i).to_le_bytes()[0]).collect();
    picture(width, height, color, BitDepth::Eight, samples)
}

fn marked(picture: &Picture) -> Picture {
    Picture::decode(&embed(&picture.encode().unwrap(), &mark()).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_picture_gives_the_ids_however_it_is_encoded_again(
        original in any_picture(),
        mark in any_mark(),
        filter in prop::sample::select(vec![
            Filter::NoFilter, Filter::Sub, Filter::Up, Filter::Avg, Filter::Paeth, Filter::Adaptive,
        ]),
        level in 0..=9u8,
    ) {
        let content = embed(&original.encode().unwrap(), &mark).unwrap();
        prop_assert_eq!(extract(&content).unwrap(), Some(mark.clone()));

        let marked = Picture::decode(&content).unwrap();
        prop_assert_eq!(marked.info.color_type, original.info.color_type);
        prop_assert_eq!(marked.info.bit_depth, original.info.bit_depth);
        let compression = match level {
            0 => DeflateCompression::NoCompression,
            level => DeflateCompression::Level(level),
        };
        let again = encode_otherwise(&marked, filter, compression);
        prop_assert_eq!(extract(&again).unwrap(), Some(mark));
    }

    #[test]
    fn no_channel_changes_by_more_than_one_step_and_alpha_not_at_all(original in any_picture(), mark in any_mark()) {
        let marked = Picture::decode(&embed(&original.encode().unwrap(), &mark).unwrap()).unwrap();
        let (pixel, colours, sample) = original.layout();
        for (before, after) in original.samples.chunks_exact(pixel).zip(marked.samples.chunks_exact(pixel)) {
            prop_assert_eq!(&before[colours * sample..], &after[colours * sample..]);
            let number = |bytes: &[u8]| bytes.iter().fold(0i32, |n, byte| n << 8 | i32::from(*byte));
            for (before, after) in before.chunks_exact(sample).zip(after.chunks_exact(sample)) {
                prop_assert!((number(before) - number(after)).abs() <= 1);
            }
        }
    }

    #[test]
    fn a_damaged_png_is_refused_and_never_panics(at: prop::sample::Index, byte: u8) {
        let mut content = noise(32, 32, ColorType::Rgb).encode().unwrap();
        let at = at.index(content.len());
        prop_assert!(Picture::decode(&content[..at.min(content.len() - 13)]).is_err());
        content[at] = byte;
        let _ = extract(&content);
    }
}

#[test]
fn alpha_added_and_dropped_leaves_the_mark() {
    let rgb = marked(&noise(64, 64, ColorType::Rgb));
    let with_alpha = convert(&rgb, ColorType::Rgba, |p| vec![p[0], p[1], p[2], 255]);
    assert_eq!(extract(&with_alpha).unwrap(), Some(mark()));
    let rgba = marked(&noise(64, 64, ColorType::Rgba));
    let without = convert(&rgba, ColorType::Rgb, |p| p[..3].to_vec());
    assert_eq!(extract(&without).unwrap(), Some(mark()));
}

#[test]
fn gray_as_rgb_and_rgb_that_is_gray_leave_the_mark() {
    let gray = marked(&noise(64, 64, ColorType::Grayscale));
    let rgb = convert(&gray, ColorType::Rgb, |p| vec![p[0]; 3]);
    assert_eq!(extract(&rgb).unwrap(), Some(mark()));
    let colourless = Picture::decode(&convert(&noise(64, 64, ColorType::Grayscale), ColorType::Rgb, |p| vec![p[0]; 3]));
    let marked = marked(&colourless.unwrap());
    assert!(marked.samples.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]), "marking made gray coloured");
}

#[test]
fn the_mark_survives_two_fifths_of_the_picture_painted_over() {
    for paint in [0, 255, 128] {
        let mut picture = marked(&noise(200, 200, ColorType::Rgb));
        let painted = picture.samples.len() * 2 / 5;
        picture.samples[..painted].fill(paint);
        assert_eq!(extract(&picture.encode().unwrap()).unwrap(), Some(mark()), "painted with {paint}");
    }
}

#[test]
fn colours_cleared_where_nothing_is_seen_leave_the_mark() {
    let mut picture = noise(128, 128, ColorType::Rgba);
    let hidden = |i: usize| !i.is_multiple_of(8);
    picture.samples.chunks_exact_mut(4).enumerate().for_each(|(i, p)| p[3] = if hidden(i) { 0 } else { 255 });
    let mut picture = marked(&picture);
    picture.samples.chunks_exact_mut(4).enumerate().filter(|(i, _)| hidden(*i)).for_each(|(_, p)| p.fill(0));
    assert_eq!(extract(&picture.encode().unwrap()).unwrap(), Some(mark()));
}

#[test]
fn a_palette_with_transparency_becomes_rgba_and_keeps_its_metadata() {
    let mut content = Vec::new();
    let mut encoder = Encoder::new(&mut content, 64, 64);
    encoder.set_color(ColorType::Indexed);
    encoder.set_depth(BitDepth::Two);
    encoder.set_palette(vec![0, 0, 0, 250, 10, 10, 10, 250, 10, 10, 10, 250]);
    encoder.set_trns(vec![0, 128]);
    encoder.add_text_chunk("Author".to_owned(), "Zing".to_owned()).unwrap();
    encoder.write_header().unwrap().write_image_data(&[0b00_01_10_11; 64 * 16]).unwrap();
    let content = embed(&content, &mark()).unwrap();
    assert_eq!(extract(&content).unwrap(), Some(mark()));
    let marked = Picture::decode(&content).unwrap();
    assert_eq!(marked.info.color_type, ColorType::Rgba);
    assert_eq!(marked.samples[3..16].iter().step_by(4).copied().collect::<Vec<_>>(), [0, 128, 255, 255]);
    assert_eq!(marked.info.uncompressed_latin1_text[0].text, "Zing");
}

#[test]
fn a_new_mark_takes_the_place_of_the_old() {
    let content = embed(&noise(64, 64, ColorType::Rgb).encode().unwrap(), &mark()).unwrap();
    for next in [Mark::new("b", "bob"), Mark::new("report-8", "carol"), Mark::new("x".repeat(100), "y".repeat(100))] {
        let next = next.unwrap();
        assert_eq!(extract(&embed(&content, &next).unwrap()).unwrap(), Some(next));
    }
}

#[test]
fn a_picture_without_a_mark_has_none() {
    assert_eq!(extract(&noise(64, 64, ColorType::Rgb).encode().unwrap()).unwrap(), None);
    assert_eq!(extract(&noise(1, 1, ColorType::Rgb).encode().unwrap()).unwrap(), None);
}

#[test]
fn too_small_a_picture_is_refused_with_the_pixels_that_are_needed() {
    let content = noise(15, 16, ColorType::Rgb).encode().unwrap();
    let error = embed(&content, &mark()).unwrap_err();
    assert!(matches!(error, PictureError::TooSmall { pixels: 240, needed: 256 }), "{error:?}");
    assert!(embed(&noise(16, 16, ColorType::Rgb).encode().unwrap(), &mark()).is_ok());
}

#[test]
fn a_small_file_that_claims_to_be_a_huge_picture_is_refused_before_it_takes_memory() {
    for (width, height, color, depth) in [
        (100_000, 100_000, ColorType::Grayscale, BitDepth::One),
        (8000, 5000, ColorType::Rgba, BitDepth::Sixteen),
        (u32::MAX >> 1, u32::MAX >> 1, ColorType::Rgba, BitDepth::Sixteen),
    ] {
        let mut content = Vec::new();
        let mut encoder = Encoder::new(&mut content, width, height);
        encoder.set_color(color);
        encoder.set_depth(depth);
        let mut writer = encoder.write_header().unwrap();
        writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c, 0x03, 0x00, 0x00, 0x00, 0x00, 0x01]).unwrap();
        drop(writer);
        assert!(matches!(extract(&content), Err(PictureError::TooLarge)), "{width}x{height}");
    }
}
