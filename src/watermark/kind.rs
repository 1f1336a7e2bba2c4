//! The kind of a file by its first bytes, if they leave no doubt.
//!
//! This tells a picture from a page of text that a service marked in its place. It does not tell whether a file is
//! complete or marked.

use memchr::memchr_iter;

/// A kind of file that is recognized by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Png,
    Jpeg,
    Gif,
    WebP,
    Tiff,
    Bmp,
    Pdf,
    /// Any ZIP archive: documents of office programs are ZIP archives too.
    Zip,
    /// Any ISO base media file (ISO/IEC 14496-12): MP4, QuickTime, and the pictures HEIC and AVIF.
    IsoMedia {
        picture: bool,
    },
    Mp3,
    Wav,
    Ogg,
}

/// How far into a file a PDF may begin (ISO 32000-1, annex H, implementation note 13).
const PDF_WITHIN: usize = 1024;

impl Kind {
    /// The kind of a file; `None` if its first bytes leave a doubt.
    pub(crate) fn of(file: &[u8]) -> Option<Kind> {
        Some(match file {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Kind::Png,
            [0xff, 0xd8, 0xff, ..] => Kind::Jpeg,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Kind::Gif,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Kind::WebP,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'A', b'V', b'E', ..] => Kind::Wav,
            // TIFF 6.0, section 2; 43 is BigTIFF's.
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Kind::Tiff,
            // APPNOTE.TXT, 4.3: a file's header, the end of an empty archive, a spanned archive.
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] | [b'P', b'K', 7, 8, ..] => Kind::Zip,
            [b'O', b'g', b'g', b'S', 0, ..] => Kind::Ogg,
            _ if is_bmp(file) => Kind::Bmp,
            [_, _, _, _, b'f', b't', b'y', b'p', brands @ ..] if is_file_type_box(file) => {
                Kind::IsoMedia { picture: is_picture(brands) }
            }
            _ if is_mp3(file) => Kind::Mp3,
            _ if is_pdf(&file[..file.len().min(PDF_WITHIN)]) => Kind::Pdf,
            _ => return None,
        })
    }

    /// Whether a marked file of the other kind can come from this one: a picture may come back as another kind of
    /// picture.
    pub(crate) fn can_become(self, other: Kind) -> bool {
        match (self, other) {
            (Kind::IsoMedia { .. }, Kind::IsoMedia { .. }) => true,
            _ => self == other || (self.is_picture() && other.is_picture()),
        }
    }

    fn is_picture(self) -> bool {
        use Kind::{Bmp, Gif, IsoMedia, Jpeg, Png, Tiff, WebP};
        matches!(self, Png | Jpeg | Gif | WebP | Tiff | Bmp | IsoMedia { picture: true })
    }

    /// Its name, to follow "a file of the kind".
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Png => "PNG",
            Kind::Jpeg => "JPEG",
            Kind::Gif => "GIF",
            Kind::WebP => "WebP",
            Kind::Tiff => "TIFF",
            Kind::Bmp => "BMP",
            Kind::Pdf => "PDF",
            Kind::Zip => "ZIP",
            Kind::IsoMedia { .. } => "ISO base media (MP4, HEIC)",
            Kind::Mp3 => "MP3",
            Kind::Wav => "WAV",
            Kind::Ogg => "Ogg",
        }
    }
}

/// Two letters are not much, so the lengths must be right too: BITMAPFILEHEADER has the file's and the offset of the
/// pixels, and a BITMAPINFOHEADER or another known one begins with its own.
fn is_bmp(file: &[u8]) -> bool {
    const INFO: usize = 14;
    let number = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?) as usize);
    let (Some(length), Some(pixels), Some(info)) = (number(2), number(10), number(INFO)) else { return false };
    let known = matches!(info, 12 | 16 | 40 | 52 | 56 | 64 | 108 | 124);
    file.starts_with(b"BM") && length == file.len() && known && (INFO + info..=length).contains(&pixels)
}

/// Four letters can occur in a text, as in "The ftyp box", so the box's length must be possible: two fields of four
/// bytes each after its header, then further brands of four (ISO/IEC 14496-12, 4.3).
fn is_file_type_box(file: &[u8]) -> bool {
    let length = file.first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize);
    (16..=file.len()).contains(&length) && length % 4 == 0
}

/// Whether the brands, the first of which is the major one, name a picture (ISO/IEC 23008-12, and AVIF).
fn is_picture(brands: &[u8]) -> bool {
    matches!(
        brands.get(..4),
        Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" | b"avif" | b"avis")
    )
}

fn is_pdf(beginning: &[u8]) -> bool {
    memchr_iter(b'%', beginning).any(|at| beginning[at..].starts_with(b"%PDF-"))
}

/// An ID3 tag, or two frames in a row.
fn is_mp3(file: &[u8]) -> bool {
    let tagged = |tag: &[u8]| matches!(tag, [b'I', b'D', b'3', 2..=4, 0..=0xfe, _, rest @ ..] if is_synchsafe(rest));
    let frame = |at: usize| frame_length(file.get(at..)?);
    tagged(file) || frame(0).is_some_and(|length| frame(length).is_some())
}

/// The length of an ID3 tag has the first bit of each byte clear (ID3v2.4, 6.2).
fn is_synchsafe(rest: &[u8]) -> bool {
    rest.len() >= 4 && rest[..4].iter().all(|b| b & 0x80 == 0)
}

/// The length in bytes of a frame of MPEG audio layer III by its header (ISO/IEC 11172-3, 2.4.2.3; 13818-3 for half the
/// rates); `None` if it is not one.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    /// kbit/s by the header's four bits, of version 1 and of versions 2 and 2.5.
    const RATES: [[usize; 16]; 2] = [
        [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0],
        [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0],
    ];
    let &[0xff, b, c, _, ..] = bytes else { return None };
    let version1 = match b >> 3 {
        0b11111 => true,
        0b11110 | 0b11100 => false,
        _ => return None,
    };
    let layer_iii = b >> 1 & 0b11 == 0b01;
    let rate = RATES[usize::from(!version1)][usize::from(c >> 4)] * 1000;
    let halved = match b >> 3 & 0b11 {
        0b11 => 0,
        0b10 => 1,
        _ => 2,
    };
    let frequency = *[44_100, 48_000, 32_000].get(usize::from(c >> 2 & 0b11))? >> halved;
    let samples = if version1 { 144 } else { 72 };
    (layer_iii && rate > 0).then(|| samples * rate / frequency + usize::from(c >> 1 & 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bmp(length: u32, pixels: u32, info: u32) -> Vec<u8> {
        let mut file = b"BM".to_vec();
        for number in [length, 0, pixels, info] {
            file.extend(number.to_le_bytes());
        }
        file.resize(60, 0);
        file
    }

    /// Two frames of 128 kbit/s at 44.1 kHz: 417 bytes each.
    fn mp3() -> Vec<u8> {
        let mut frame = vec![0xff, 0xfb, 0x90, 0];
        frame.resize(417, 0);
        [&frame[..], &frame[..4]].concat()
    }

    #[test]
    fn each_kind_is_told_by_its_first_bytes() {
        let late_pdf = [&[b' '; 1019][..], b"%PDF-"].concat();
        for (file, kind) in [
            (&b"\x89PNG\r\n\x1a\n\0"[..], Kind::Png),
            (b"\xff\xd8\xff\xe0", Kind::Jpeg),
            (b"GIF89a", Kind::Gif),
            (b"GIF87a", Kind::Gif),
            (b"RIFF\0\0\0\0WEBPVP8 ", Kind::WebP),
            (b"RIFF\0\0\0\0WAVEfmt ", Kind::Wav),
            (b"II*\0\x08", Kind::Tiff),
            (b"MM\0*\0", Kind::Tiff),
            (&bmp(60, 54, 40), Kind::Bmp),
            (b"%PDF-1.7", Kind::Pdf),
            (&late_pdf, Kind::Pdf),
            (b"PK\x03\x04", Kind::Zip),
            (b"PK\x05\x06", Kind::Zip),
            (b"\0\0\0\x10ftypisom\0\0\x02\0", Kind::IsoMedia { picture: false }),
            (b"\0\0\0\x14ftypheic\0\0\0\0mif1\0\0\0\0meta", Kind::IsoMedia { picture: true }),
            (b"ID3\x04\0\0\0\0\x02\x01", Kind::Mp3),
            (&mp3(), Kind::Mp3),
            (b"OggS\0", Kind::Ogg),
        ] {
            assert_eq!(Kind::of(file), Some(kind), "{file:?}");
        }
    }

    #[test]
    fn in_doubt_no_kind_is_reported() {
        let too_late_pdf = [&[b' '; 1020][..], b"%PDF-"].concat();
        for file in [
            &b""[..],
            b"BM is a text that begins so",
            &bmp(61, 54, 40),
            &bmp(60, 61, 40),
            &bmp(60, 53, 40),
            &bmp(60, 54, 41),
            &mp3()[..420],
            b"The ftyp box is the first one of a file.",
            b"\0\0\0\x18ftypisom\0\0\x02\0isom",
            b"ID3 is not a tag",
            b"ID3\x04\0\0\x80\0\0\0",
            b"RIFF\0\0\0\0AVI ",
            b"\xff\xfb\x90\0",
            &too_late_pdf,
            b"\x89PNG\n\x1a\n",
        ] {
            assert_eq!(Kind::of(file), None, "{file:?}");
        }
    }

    #[test]
    fn a_picture_may_become_another_picture_and_nothing_else_may_become_another_kind() {
        let (heic, mp4) = (Kind::IsoMedia { picture: true }, Kind::IsoMedia { picture: false });
        for (from, to) in [(Kind::Png, Kind::Jpeg), (heic, Kind::Jpeg), (heic, mp4), (Kind::Pdf, Kind::Pdf)] {
            assert!(from.can_become(to), "{from:?} {to:?}");
        }
        for (from, to) in [(Kind::Png, Kind::Pdf), (mp4, Kind::Jpeg), (Kind::Zip, Kind::Pdf), (Kind::Mp3, Kind::Wav)] {
            assert!(!from.can_become(to), "{from:?} {to:?}");
        }
    }
}
