//! `teemark-image size`; every limit by itself is tested in src/record.rs.

use super::*;

#[test]
fn an_image_within_its_limits_passes_and_one_past_them_is_named_with_status_1() {
    let place = Place::new();
    let built = succeeds(place.build(&[]));
    let output = succeeds(place.run(&["size", "out/teemark.json"]));
    assert!(
        stdout(&output).starts_with("part             bytes      limit       left\nkernel           1,000  2,000,000")
    );
    assert!(stdout(&built).contains(&stdout(&output)), "{}", stdout(&built));

    place.write("init", program(65_536));
    succeeds(place.build(&[]));
    let output = place.run(&["size", "out/teemark.json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "too large: init: 65,672 bytes are 136 past the limit of 65,536\n");
}

#[test]
fn a_file_that_is_no_record_is_named() {
    let place = Place::new();
    for file in ["no.json", "env"] {
        let output = place.run(&["size", file]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).starts_with(&format!("error: {file} ")), "{}", stderr(&output));
    }
}
