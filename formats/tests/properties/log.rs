//! Lines of a log, and of its collector.

use formats::log::{Ack, Head, Kind, Record, parse_hello};
use proptest::prelude::*;

use super::config;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_line_makes_a_parser_panic_and_what_is_read_is_what_stands_there(line in "[0-9a-z ]{0,90}|\\PC*") {
        let _ = (parse_hello(line.as_bytes()), Ack::parse(line.as_bytes()));
        if let Some(record) = Record::parse(line.as_bytes()) {
            let Head { number, hash } = record.head;
            prop_assert_eq!(format!("{number} {hash} {} {}", record.kind.name(), record.body), line);
        }
    }

    #[test]
    fn a_record_of_any_body_is_read_as_it_was_written_and_follows(body in "[^\\n]*", number in 0..u64::MAX - 2) {
        let before = Head { number, ..Head::default() };
        let (mut head, mut line) = (before, Vec::new());
        head.write(Kind::Audit, body.as_bytes(), &mut line);
        let record = Record::parse(&line[..line.len() - 1]).unwrap();
        prop_assert_eq!((record.head, record.kind, record.body), (head, Kind::Audit, body.as_str()));
        prop_assert!(record.follows(&before) && !record.follows(&head));
    }
}
