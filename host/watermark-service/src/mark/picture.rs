//! Marks in PNG images: the frame in the least significant bits of the pixels.
//!
//! One bit a pixel, the same in each of its colour channels; alpha is left alone. No channel changes by more than one
//! step. The frame, padded to a power of two, is laid over the pixels again and again, each time in another order,
//! and inverted at pseudorandom pixels, so that a painted area votes for nothing in particular; reading takes the
//! majority.
//!
//! Survives: decoding and encoding again with any filter, compression or interlacing; alpha added or dropped; gray
//! stored as RGB and back, since a pixel's channels agree; colours moved to a palette and back; metadata dropped;
//! part of the picture painted over, as long as the rest still outvotes it. Does not survive: JPEG, scaling,
//! cropping, rotating, colour conversion, and 16-bit samples cut down to 8.

use std::io::Cursor;

use png::{BitDepth, ColorType, Compression, Decoder, DecodingError, Encoder, Info, Limits, Transformations};

use super::{MAX_FRAME, Mark};

/// The eight bytes that every PNG begins with (PNG specification, section 5.2).
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Largest picture that is decoded, in pixels: a little over 7680 x 5120.
pub(crate) const MAX_PIXELS: u64 = 40_000_000;

/// Largest picture that is decoded, in bytes of samples.
pub(crate) const MAX_BYTES: usize = 256 << 20;

/// Room for what a decoder takes besides the samples: one line, a colour profile, texts.
const DECODER_BYTES: usize = 16 << 20;

/// Seed of the pseudorandom order. It keeps marks from repeating visibly; it is not secret.
const SEED: u64 = 0x7465_656d_6172_6b31;

/// A pixel under full transparency counts this much less, since optimizers clear what cannot be seen.
const VISIBLE_WEIGHT: i32 = 16;

/// Why a picture cannot be marked or read.
#[derive(Debug)]
pub(crate) enum PictureError {
    /// Not a PNG that can be decoded whole.
    Damaged(String),
    /// An animation, of which only one frame would be kept.
    Animated,
    /// Past [`MAX_PIXELS`], [`MAX_BYTES`] or the decoder's own limits.
    TooLarge,
    /// Fewer pixels than the mark has bits.
    TooSmall { pixels: u64, needed: u64 },
}

impl From<DecodingError> for PictureError {
    fn from(error: DecodingError) -> Self {
        match error {
            DecodingError::LimitsExceeded => PictureError::TooLarge,
            other => PictureError::Damaged(other.to_string()),
        }
    }
}

/// Samples as they are marked: gray or RGB, with or without alpha, 8 or 16 bits big endian, no palette.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) info: Info<'static>,
    pub(crate) samples: Vec<u8>,
}

/// Whether the content claims to be a PNG.
pub(crate) fn is_png(content: &[u8]) -> bool {
    content.starts_with(SIGNATURE)
}

/// The PNG with `mark` in it. Any mark that it had is overwritten.
///
/// # Errors
/// [`PictureError`].
pub(crate) fn embed(content: &[u8], mark: &Mark) -> Result<Vec<u8>, PictureError> {
    let mut picture = Picture::decode(content)?;
    let mut frame = mark.frame();
    let bits = 8 * frame.len().next_power_of_two();
    let pixels = picture.pixels();
    if pixels < bits as u64 {
        return Err(PictureError::TooSmall { pixels, needed: bits as u64 });
    }
    frame.resize(bits / 8, 0);
    let (pixel, colours, sample) = picture.layout();
    for (slot, bytes) in Slots::new(bits).zip(picture.samples.chunks_exact_mut(pixel)) {
        let bit = frame[slot.bit / 8] >> (slot.bit % 8) & 1 ^ u8::from(slot.inverted);
        for low in bytes[..colours * sample].iter_mut().skip(sample - 1).step_by(sample) {
            *low = *low & !1 | bit;
        }
    }
    picture.encode()
}

/// The mark in the PNG, if it has one.
///
/// # Errors
/// [`PictureError`], except `TooSmall`.
pub(crate) fn extract(content: &[u8]) -> Result<Option<Mark>, PictureError> {
    let picture = Picture::decode(content)?;
    // The frame's length is not known beforehand, but there are only a few possible lengths.
    let lengths = std::iter::successors(Some(16), |bytes| Some(bytes * 2)).take_while(|bytes| *bytes < 2 * MAX_FRAME);
    Ok(lengths
        .take_while(|bytes| 8 * *bytes as u64 <= picture.pixels())
        .find_map(|bytes| Mark::read(picture.elect(8 * bytes).into_iter())))
}

impl Picture {
    /// Decodes within the limits; palettes, transparent colours and depths under 8 bits are expanded.
    ///
    /// # Errors
    /// [`PictureError`], except `TooSmall`.
    pub(crate) fn decode(content: &[u8]) -> Result<Self, PictureError> {
        let mut decoder = Decoder::new_with_limits(Cursor::new(content), Limits { bytes: DECODER_BYTES });
        decoder.set_transformations(Transformations::EXPAND);
        let mut reader = decoder.read_info()?;
        if reader.info().is_animated() {
            return Err(PictureError::Animated);
        }
        let size = reader.output_buffer_size().filter(|size| *size <= MAX_BYTES).ok_or(PictureError::TooLarge)?;
        let (width, height) = reader.info().size();
        if u64::from(width) * u64::from(height) > MAX_PIXELS {
            return Err(PictureError::TooLarge);
        }
        let mut samples = vec![0; size];
        let output = reader.next_frame(&mut samples)?;
        // What follows the picture: texts and EXIF.
        reader.finish()?;
        let mut info = reader.info().clone();
        if (info.color_type, info.bit_depth) != (output.color_type, output.bit_depth) {
            // Their values refer to the palette or to the smaller depth.
            (info.sbit, info.bkgd) = (None, None);
        }
        (info.color_type, info.bit_depth) = (output.color_type, output.bit_depth);
        (info.palette, info.trns, info.interlaced) = (None, None, false);
        Ok(Picture { info, samples })
    }

    /// As a PNG, with the metadata of the one that was decoded.
    ///
    /// # Errors
    /// `Damaged` if the metadata cannot be written again.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, PictureError> {
        let mut content = Vec::with_capacity(self.samples.len() / 2);
        let damaged = |error: png::EncodingError| PictureError::Damaged(error.to_string());
        let mut encoder = Encoder::with_info(&mut content, self.info.clone()).map_err(damaged)?;
        encoder.set_compression(Compression::Balanced);
        let mut writer = encoder.write_header().map_err(damaged)?;
        writer.write_image_data(&self.samples).map_err(damaged)?;
        writer.finish().map_err(damaged)?;
        Ok(content)
    }

    fn pixels(&self) -> u64 {
        u64::from(self.info.width) * u64::from(self.info.height)
    }

    /// Bytes a pixel, colour channels a pixel, bytes a sample.
    pub(crate) fn layout(&self) -> (usize, usize, usize) {
        let sample = if self.info.bit_depth == BitDepth::Sixteen { 2 } else { 1 };
        let channels = self.info.color_type.samples();
        let alpha = matches!(self.info.color_type, ColorType::GrayscaleAlpha | ColorType::Rgba);
        (channels * sample, channels - usize::from(alpha), sample)
    }

    /// The majority for each of `bits` bits, as bytes.
    fn elect(&self, bits: usize) -> Vec<u8> {
        let (pixel, colours, sample) = self.layout();
        let most = i32::try_from(colours).expect("one or three");
        let mut votes = vec![0i32; bits];
        for (slot, bytes) in Slots::new(bits).zip(self.samples.chunks_exact(pixel)) {
            let (colour, alpha) = bytes.split_at(colours * sample);
            let hidden = !alpha.is_empty() && alpha.iter().all(|byte| *byte == 0);
            let weight = if hidden { 1 } else { VISIBLE_WEIGHT };
            let ones = colour.iter().skip(sample - 1).step_by(sample).map(|low| i32::from(low & 1)).sum::<i32>();
            let vote = weight * (2 * ones - most);
            votes[slot.bit] += if slot.inverted { -vote } else { vote };
        }
        votes
            .chunks_exact(8)
            .map(|byte| byte.iter().rev().fold(0, |byte, votes| byte << 1 | u8::from(*votes > 0)))
            .collect()
    }
}

/// Which bit of the frame a pixel carries, and whether inverted.
struct Slot {
    bit: usize,
    inverted: bool,
}

/// The slots of all pixels, row by row. Every run of `bits` pixels, `bits` a power of two, carries each bit once.
struct Slots {
    bits: usize,
    pixel: usize,
    factor: usize,
    offset: usize,
}

impl Slots {
    fn new(bits: usize) -> Self {
        debug_assert!(bits.is_power_of_two());
        Slots { bits, pixel: 0, factor: 1, offset: 0 }
    }
}

impl Iterator for Slots {
    type Item = Slot;

    fn next(&mut self) -> Option<Slot> {
        let place = self.pixel % self.bits;
        if place == 0 {
            let order = mix(SEED ^ (self.pixel / self.bits) as u64);
            let part = |bits: u64| usize::try_from(bits).expect("at most 32 bits");
            // An odd factor permutes the residues of a power of two.
            (self.factor, self.offset) = (part((order | 1) & 0xffff), part(order >> 32));
        }
        let bit = (place * self.factor + self.offset) % self.bits;
        let inverted = mix(!SEED ^ self.pixel as u64) & 1 == 1;
        self.pixel += 1;
        Some(Slot { bit, inverted })
    }
}

/// SplitMix64's output function (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub(crate) fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;
