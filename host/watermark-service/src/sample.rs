//! The demo's picture: mountains at dusk over a lake, computed, so that it belongs to nobody and is always the same.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "coordinates and colours are small and not negative, and the picture's bytes must stay the same"
)]

use anyhow::Result;
use png::{BitDepth, ColorType, Info};

use crate::content::ContentError;
use crate::mark::picture::{Picture, mix};

/// Pixels across and down.
const SIZE: (u32, u32) = (640, 400);

/// Points computed for each pixel, across and down.
const FINE: u32 = 2;

/// Red, green, blue, each 0 to 1 as it is stored (no gamma is applied).
type Colour = [f64; 3];

/// Where the lake begins, from the top, in picture heights. Across, the same unit holds.
const SHORE: f64 = 0.74;

/// The sun's middle, across and down.
const SUN: (f64, f64) = (0.425, 0.505);

/// Light that haze scatters: warm by the sun, violet away from it.
const HAZE: Colour = [0.98, 0.66, 0.50];

/// A range of mountains: its mean top, its ups and downs, how fine they are, how much haze lies before it.
struct Range {
    top: f64,
    height: f64,
    detail: f64,
    haze: f64,
    seed: u64,
}

/// From far to near.
const RANGES: [Range; 5] = [
    Range { top: 0.545, height: 0.17, detail: 2.6, haze: 0.72, seed: 11 },
    Range { top: 0.600, height: 0.17, detail: 3.0, haze: 0.52, seed: 22 },
    Range { top: 0.650, height: 0.15, detail: 3.4, haze: 0.34, seed: 36 },
    Range { top: 0.692, height: 0.11, detail: 4.2, haze: 0.18, seed: 47 },
    Range { top: 0.722, height: 0.06, detail: 5.0, haze: 0.05, seed: 58 },
];

/// The picture as a PNG.
///
/// # Errors
/// Only what the PNG encoder would report.
pub(crate) fn png() -> Result<Vec<u8>> {
    let (width, height) = SIZE;
    let unit = f64::from(height);
    let scene = Scene::new();
    let mut samples = Vec::with_capacity((width * height * 3) as usize);
    for y in 0..height {
        for x in 0..width {
            let mut sum = [0.0; 3];
            for fine in 0..FINE * FINE {
                let at = |p: u32, part: u32| (f64::from(p) + (f64::from(part) + 0.5) / f64::from(FINE)) / unit;
                sum = add(sum, scene.point(at(x, fine % FINE), at(y, fine / FINE)), 1.0 / f64::from(FINE * FINE));
            }
            let random = |channel: u64| (mix(u64::from(y * width + x) * 4 + channel) >> 40) as f64 / 16_777_216.0;
            // Grain as a sensor has it: mostly brightness, a little colour.
            let grain = random(0) + random(1) - 1.0;
            for (channel, value) in sum.iter().enumerate() {
                let noise = 0.016 * grain + 0.006 * (random(channel as u64 + 1) - 0.5);
                samples.push((255.0 * (value + noise) + 0.5).clamp(0.0, 255.0) as u8);
            }
        }
    }
    let mut info = Info::with_size(width, height);
    (info.color_type, info.bit_depth) = (ColorType::Rgb, BitDepth::Eight);
    Picture { info, samples }.encode().map_err(|e| ContentError::from(e).into())
}

/// The ranges' outlines, computed once for each column of points.
struct Scene([Vec<f64>; RANGES.len()]);

impl Scene {
    fn new() -> Self {
        let (width, height) = SIZE;
        let across = |column| f64::from(column) / f64::from(height * FINE);
        Scene(RANGES.each_ref().map(|range| (0..=width * FINE).map(|column| ridge(range, across(column))).collect()))
    }

    fn point(&self, x: f64, y: f64) -> Colour {
        let colour = if y < SHORE { self.land(x, y) } else { self.water(x, y) };
        // Corners darker, as a lens makes them.
        let (dx, dy) = (x - 0.8, y - 0.5);
        scale(colour, 1.0 - 0.22 * (dx * dx + dy * dy))
    }

    /// Sky and mountains; what is nearest hides the rest.
    fn land(&self, x: f64, y: f64) -> Colour {
        let column = (x * f64::from(SIZE.1 * FINE)) as usize;
        let top = |tops: &[f64]| tops[column.min(tops.len() - 1)];
        let covering = RANGES.iter().zip(&self.0).rev().find(|(_, tops)| y > top(tops));
        covering.map_or_else(|| sky(x, y), |(range, tops)| slope(range, x, y, top(tops)))
    }

    /// The lake: a mirror image of what is above it, shaken by waves that grow towards the viewer.
    fn water(&self, x: f64, y: f64) -> Colour {
        let depth = y - SHORE;
        let across = 1.0 / (depth + 0.035);
        let wave = fbm(x * across * 0.55, across * 5.0, 4, 90) - 0.5;
        let chop = noise(x * across * 3.0, across * 22.0, 95) - 0.5;
        let mirrored = (SHORE - depth * 1.5 - (wave * 0.22 + chop * 0.07) * (depth + 0.02)).clamp(0.0, SHORE - 0.001);
        let shaken = x + (wave * 0.10 + chop * 0.03) * depth;
        let colour = blend(self.land(shaken.max(0.0), mirrored), [0.13, 0.12, 0.24], 0.26 + 0.5 * depth);
        let path = (-((x - SUN.0) / (0.05 + 0.20 * depth)).powi(2)).exp();
        let glitter = smooth((chop + wave * 0.8 - 0.03) * 5.0) * path;
        let colour = add(colour, [1.0, 0.66, 0.36], 0.62 * glitter + 0.10 * path);
        let bank = smooth(1.0 - depth * 90.0);
        blend(colour, [0.05, 0.05, 0.09], 0.75 * bank)
    }
}

fn sky(x: f64, y: f64) -> Colour {
    let stops: [(f64, Colour); 5] = [
        (0.0, [0.10, 0.11, 0.27]),
        (0.20, [0.25, 0.20, 0.42]),
        (0.36, [0.58, 0.33, 0.48]),
        (0.48, [0.93, 0.54, 0.40]),
        (0.62, [1.00, 0.78, 0.52]),
    ];
    let above = stops.iter().rposition(|(at, _)| y >= *at).unwrap_or(0).min(stops.len() - 2);
    let ((from, dark), (to, light)) = (stops[above], stops[above + 1]);
    let mut colour = blend(dark, light, smooth((y - from) / (to - from)));

    let distance = (x - SUN.0).hypot(y - SUN.1);
    colour = add(colour, [1.0, 0.62, 0.30], 0.45 * (-distance * 5.0).exp());
    colour = add(colour, [0.5, 0.22, 0.10], 0.45 * (-distance * 1.8).exp());

    // Clouds lie flat, so they are stretched across; the sun lights them from below.
    let cloud = fbm(x * 2.2 + 3.0, y * 11.0, 5, 71) + 0.35 * fbm(x * 6.0, y * 30.0, 4, 72) - 0.66;
    let cover = smooth(cloud * 4.0) * smooth((0.56 - y) * 5.0) * smooth(y * 5.0 + 0.2);
    let lit = blend([0.42, 0.27, 0.43], [1.0, 0.63, 0.45], (1.25 - distance * 1.3).clamp(0.0, 1.0));
    colour = blend(colour, lit, 0.75 * cover);

    let disc = smooth((0.040 - distance) * 150.0 + 0.5);
    colour = blend(colour, [1.0, 0.95, 0.80], disc);
    add(colour, star(x, y), smooth((0.22 - y) * 6.0) * (1.0 - cover))
}

/// A few stars in the dark part of the sky.
fn star(x: f64, y: f64) -> Colour {
    let cell = (x * 45.0, y * 45.0);
    let hash = mix(cell.0 as u64 * 8191 + cell.1 as u64);
    if !hash.is_multiple_of(14) {
        return [0.0; 3];
    }
    let at = |bits: u64| 0.2 + 0.6 * ((hash >> bits & 255) as f64 / 255.0);
    let distance = (cell.0.fract() - at(8)).hypot(cell.1.fract() - at(16));
    [0.8 * (-distance * distance * 900.0).exp() * at(24); 3]
}

/// The top of the range at `x`.
fn ridge(range: &Range, x: f64) -> f64 {
    let mut top = range.top;
    let mut height = range.height;
    let mut detail = range.detail;
    for octave in 0..7 {
        // Folded noise has the sharp crests that plain noise lacks.
        let crest = 1.0 - (2.0 * noise(x * detail, 0.5, range.seed + octave) - 1.0).abs();
        top -= height * (crest * crest - 0.45);
        (height, detail) = (height * 0.47, detail * 2.07);
    }
    if range.haze < 0.2 { top - trees(range, x) } else { top }
}

/// Tips of firs on the near ranges.
fn trees(range: &Range, x: f64) -> f64 {
    let size = 0.035 * (1.0 - 2.6 * range.haze);
    let tree = |row: u64, spacing: f64| {
        let place = x / spacing + row as f64 * 0.37;
        let hash = mix(place.floor() as u64 + 1000 * (range.seed + row));
        let tall = size * (0.35 + 0.65 * (hash % 1000) as f64 / 1000.0);
        let middle = 0.35 + 0.3 * (hash >> 20 & 1023) as f64 / 1023.0;
        let away = (place.fract() - middle).abs() * spacing;
        // Branches: the outline steps outwards on the way down.
        let step = 0.0025 * ((away * 900.0).fract() - 0.5);
        (tall - away * 4.2 + step).max(0.0) * f64::from(u8::from(noise(x * 5.0, 2.0, range.seed + 9) > 0.34))
    };
    tree(1, size * 0.42).max(tree(2, size * 0.31)).max(tree(3, size * 0.55))
}

fn slope(range: &Range, x: f64, y: f64, top: f64) -> Colour {
    let below = y - top;
    // Gullies run down from the crests.
    let rock = fbm(x * 26.0 + below * 9.0, y * 15.0, 5, range.seed + 100) - 0.5;
    let near = [0.055, 0.060, 0.115];
    let bare = scale(near, 1.0 + 1.1 * rock);
    let sun = (-(x - SUN.0).abs() * 1.9).exp();
    let haze = blend([0.50, 0.36, 0.53], HAZE, sun);
    let mist = smooth(below / 0.17) * 0.34 * (1.0 - range.haze * 0.4) * (range.haze + 0.25);
    let colour = blend(bare, haze, (range.haze + mist).min(0.93));
    let relief = add(colour, [1.0, 0.8, 0.7], 0.09 * rock * range.haze.sqrt());
    // Light that comes over the crest.
    add(relief, [1.0, 0.55, 0.25], 0.30 * sun * (-below * 75.0).exp() * range.haze)
}

/// Noise of several sizes, 0 to 1, mostly near the middle.
fn fbm(x: f64, y: f64, octaves: u64, seed: u64) -> f64 {
    let (mut sum, mut weight, mut scale) = (0.0, 0.5, 1.0);
    for octave in 0..octaves {
        sum += weight * noise(x * scale, y * scale, seed + 7 * octave);
        (weight, scale) = (weight * 0.5, scale * 2.03);
    }
    sum / (1.0 - 2.0 * weight + weight)
}

/// Smooth noise, 0 to 1, with features of size 1; coordinates from 0 up.
fn noise(x: f64, y: f64, seed: u64) -> f64 {
    let corner = |dx: u64, dy: u64| {
        let cell = (x as u64 + dx) << 24 | (y as u64 + dy);
        (mix(cell ^ mix(seed)) >> 40) as f64 / 16_777_216.0
    };
    let (u, v) = (smooth(x.fract()), smooth(y.fract()));
    let row = |dy: u64| corner(0, dy) * (1.0 - u) + corner(1, dy) * u;
    row(0) * (1.0 - v) + row(1) * v
}

/// 0 below 0, 1 above 1, without a kink between.
fn smooth(t: f64) -> f64 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

fn blend(a: Colour, b: Colour, t: f64) -> Colour {
    std::array::from_fn(|c| a[c] + (b[c] - a[c]) * t)
}

fn add(a: Colour, b: Colour, weight: f64) -> Colour {
    std::array::from_fn(|c| a[c] + b[c] * weight)
}

fn scale(a: Colour, by: f64) -> Colour {
    a.map(|value| value * by)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_picture_is_always_the_same_and_has_many_colours() {
        let content = png().unwrap();
        assert_eq!(content, png().unwrap());
        let picture = Picture::decode(&content).unwrap();
        assert_eq!(picture.info.size(), SIZE);
        let colours: HashSet<&[u8]> = picture.samples.chunks_exact(3).collect();
        assert!(colours.len() > 20_000, "{} colours", colours.len());
    }
}
