//! Images that were cut off or damaged on their way.

use super::*;
use teemark_image::parts::{Parts, PartsError};

fn image(place: &Place) -> Vec<u8> {
    place.write("teemarkd", program(1));
    succeeds(place.build(&[]));
    place.read("out/teemark.eif")
}

#[test]
fn an_image_that_is_cut_off_anywhere_is_refused() {
    let image = image(&Place::new());
    Parts::parse(&image).unwrap();
    for length in 0..image.len() {
        match Parts::parse(&image[..length]).unwrap_err() {
            PartsError::Magic => assert!(length < 4),
            PartsError::Truncated { length: found, expected } => {
                assert!(found == length && (length as u64) < expected && expected <= image.len() as u64);
            }
            other => panic!("{length}: {other}"),
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut image = image(&Place::new());
    for bit in 0..image.len() * 8 {
        image[bit / 8] ^= 1 << (bit % 8);
        Parts::parse(&image).map(drop).expect_err(&format!("bit {bit}"));
        image[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn headers_that_contradict_each_other_are_refused_although_the_crc_matches() {
    let image = image(&Place::new());
    // Version at 4, number of sections at 26, their offsets from 28 and sizes from 284, 8 bytes each; the kernel's
    // section from 548: type, flags, size in 8 bytes. Sections: kernel, command line, metadata, two ramdisks.
    let command_line = 548 + 12 + 1000;
    for (at, bytes, reason) in [
        (4, &[0, 3][..], "has version 3 of the format, not 4"),
        (6, &[0, 1], "cannot boot: its kernel is not one for the architecture in its header"),
        (26, &[0, 33], "is damaged: it claims 33 sections, and at most 32 are possible; copy or build it again"),
        (26, &[0, 4], "bytes follow the last section"),
        (28 + 8 + 7, &[0], "is damaged: section 1 should begin at "),
        (284, &[0x80], "is cut off: it has "),
        (284, &[0xff; 8], "is cut off: it has "),
        (
            548 + 11,
            &[0],
            "is damaged: section 0 has 768 bytes by its own header, but 1000 by the file's; copy or build it again",
        ),
        (548, &[0, 9], "is damaged: section 0 has an unknown type; copy or build it again"),
        (548, &[0, 5], "cannot boot: it has no kernel"),
        (command_line, &[0, 1], "cannot boot: it has several kernels"),
        (command_line, &[0, 5], "cannot boot: it has no command line"),
        (command_line + 12, &[0xff], "cannot boot: its command line is not UTF-8"),
    ] {
        let error = Parts::parse(&changed(&image, at, bytes)).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason} in {error}");
    }
}

#[test]
fn what_follows_the_last_section_is_noticed() {
    let mut image = image(&Place::new());
    image.push(0);
    assert_eq!(
        Parts::parse(&image).unwrap_err().to_string(),
        "is damaged: 1 bytes follow the last section; copy or build it again"
    );
}

#[test]
fn the_command_names_the_file_and_what_is_wrong_with_it() {
    let place = Place::new();
    let image = image(&place);
    let mut flipped = image.clone();
    flipped[2000] ^= 1;
    place.write("flipped.eif", flipped);
    place.write("short.eif", &image[..image.len() - 1]);
    place.write("other.eif", "something else");
    for (file, reason) in [
        ("flipped.eif", "flipped.eif is damaged: its CRC is "),
        ("short.eif", "short.eif is cut off: it has "),
        ("other.eif", "other.eif is not an enclave image: it does not begin with .eif"),
        ("none.eif", "none.eif cannot be read: No such file"),
    ] {
        for arguments in [&["parts", file, "parts"][..], &["describe", file]] {
            let output = place.run(arguments);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}");
            assert!(stderr(&output).contains(reason), "{reason} in {}", stderr(&output));
        }
    }
    assert!(!place.path("parts").exists());
}
