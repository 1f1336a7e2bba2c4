//! What is told, as plain text.

use formats::time::Utc;
use ratatui::text::Line;

use super::details::details;
use super::enclaves::Enclave;
use super::overview::overview;

/// Where figures are broken into lines; a table or a message may be longer.
const WIDTH: usize = 100;

/// The table, and what is known of each enclave.
pub(super) fn as_text(enclaves: &[Enclave], now: Utc) -> String {
    let (head, rows) = overview(enclaves, now, usize::MAX);
    let mut lines = vec![head];
    lines.extend(rows);
    for enclave in enclaves {
        lines.push(Line::default());
        lines.extend(details(enclave, now, WIDTH));
    }
    lines.iter().map(|line| format!("{}\n", line.to_string().trim_end())).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use formats::hpke::PrivateKey;

    use super::super::enclaves::tests::{answers, silent};
    use super::super::figures::tests::look;
    use super::*;

    /// The metrics of an enclave that is well, after `files` files.
    pub(crate) fn metrics(files: u32) -> String {
        format!(
            "teemark_start_time_seconds 1\nteemark_ready 1\nteemark_build_info{{version=\"0.1.0\"}} 1\n\
             teemark_requests_total{{route=\"decrypt\",code=\"200\"}} {files}\n\
             teemark_request_duration_seconds_bucket{{route=\"decrypt\",le=\"0.1\"}} {files}\n\
             teemark_request_duration_seconds_bucket{{route=\"decrypt\",le=\"+Inf\"}} {files}\n\
             teemark_memory_left_bytes 1048576\nteemark_memory_limit_bytes 20971520\nteemark_clock_drift_seconds -0.02\n\
             teemark_client_certificate_not_after_timestamp_seconds {}\nteemark_log_lines_dropped_total 3\n",
            look(0, "").time.0 + 86_400 * 5
        )
    }

    fn two() -> Vec<Enclave> {
        let mut enclaves =
            ["http://127.0.0.1:3001", "http://[2001:db8:1234:5678:9abc:def0:1:2]:3001"].map(|a| Enclave::new(a.into()));
        enclaves[0].take(answers(0, &metrics(100), ""), None);
        enclaves[0].take(answers(2, &metrics(110), ""), None);
        enclaves[1].take(silent(1, "io: Connection refused (os error 111)"), None);
        enclaves.into()
    }

    fn shown(lines: &[Line<'_>]) -> String {
        lines.iter().map(|line| format!("{}\n", line.to_string().trim_end())).collect()
    }

    #[test]
    fn each_enclave_has_a_row_and_one_that_does_not_answer_says_why_and_since_when() {
        let (head, rows) = overview(&two(), look(2, "").time, 1000);
        let all = shown(&[vec![head], rows].concat());
        assert_eq!(
            all,
            "ENCLAVE                           STATE              UP  FILES/S  ERR/S    P50    P99  BUSY   MEM  CERT  DRIFT  LOST\n\
             127.0.0.1:3001                    ready        00:01:42      5.0      0  50 ms  99 ms     –  95%!   4d!  -20ms     3\n\
             [2001:db8:1234:5678:9abc:def0:1…  no answer!!  since 08:00:01Z: io: Connection refused (os error 111)\n"
        );
    }

    #[test]
    fn where_there_is_no_room_the_columns_that_say_least_go_first() {
        let enclaves = &two()[..1];
        let widths: Vec<usize> = (20..120).collect();
        let mut columns = 0;
        for width in widths {
            let (head, rows) = overview(enclaves, look(2, "").time, width);
            let names = head.to_string().split_whitespace().count();
            assert!(names >= columns, "{width}: {head}");
            columns = names;
            assert!(width < 25 || [&head, &rows[0]].iter().all(|line| line.width() <= width), "{width}: {head}");
        }
        assert_eq!(columns, 12);
        let at = |width| overview(enclaves, look(2, "").time, width).0.to_string();
        assert_eq!(at(40).split_whitespace().collect::<Vec<_>>(), ["ENCLAVE", "STATE", "FILES/S", "ERR/S"]);
        assert!(at(80).contains("MEM") && at(80).contains("CERT"), "{}", at(80));
    }

    #[test]
    fn the_details_have_every_figure_and_break_between_figures_only() {
        let enclaves = two();
        for width in [40, 100] {
            let lines = details(&enclaves[0], look(2, "").time, width);
            assert!(lines.iter().take(12).all(|line| line.width() <= width), "{lines:?}");
            let all = shown(&lines);
            for part in [
                "teemarkd 0.1.0",
                "up 00:01:42",
                "files/s 5.0",
                "(last 2.0 s)",
                "a file took p50 50 ms, p99 99 ms",
                "memory 19.0 MiB of 20.0 MiB!",
                "certificate 4d!",
                "clock drift -20ms",
                "log records lost 3",
                "decrypt                110      5.0    50 ms    99 ms",
                "none among the last records",
            ] {
                assert!(all.contains(part), "{part} at {width} in\n{all}");
            }
        }
        let silent = shown(&details(&enclaves[1], look(2, "").time, 80));
        assert_eq!(
            silent.lines().skip(1).collect::<Vec<_>>(),
            ["no answer!!", "since 08:00:01Z: io: Connection refused (os error 111)"]
        );
        let narrow = shown(&details(&enclaves[1], look(2, "").time, 30));
        assert!(narrow.ends_with("since 08:00:01Z: io:\nConnection refused (os error\n111)\n"), "{narrow}");
    }

    #[test]
    fn what_the_log_cannot_show_is_said() {
        let mut enclave = Enclave::new("http://a".into());
        let told = |enclave: &Enclave| shown(&details(enclave, look(2, "").time, 80));
        let zeros = "0".repeat(64);
        enclave.take(answers(0, &metrics(1), &format!("1 {zeros} sealed AAAA\n2 {zeros} sealed AAAA\n")), None);
        assert!(told(&enclave).contains("2 records of the log are sealed; --log-key FILE opens them"));
        let other = PrivateKey::new(Box::new([1; 32]));
        enclave.take(answers(0, &metrics(1), &format!("1 {zeros} sealed AAAA\n2 {zeros} sealed AAAA\n")), Some(&other));
        assert!(told(&enclave).contains("2 records of the log are sealed; this log key does not open them"));
        let mut off = answers(2, &metrics(1), "");
        let page = off.found.as_mut().unwrap();
        page.look.status = Ok(serde_json::json!({"audit": "off"}));
        enclave.take(off, None);
        assert!(told(&enclave).contains("TEEMARK_AUDIT is off") && told(&enclave).contains("collector none"));
        let stream = "teemark_log_connected 0\nteemark_log_last_record 90\nteemark_log_last_acknowledged_record 80\n";
        enclave.take(answers(3, &(metrics(1) + stream), ""), None);
        assert!(told(&enclave).contains("collector not connected, has 80 of 90 records!"), "{}", told(&enclave));
        let mut fault = answers(4, &metrics(1), "");
        fault.found.as_mut().unwrap().log = Err("not for web pages".into());
        enclave.take(fault, None);
        assert!(told(&enclave).contains("/admin/log: not for web pages"));
    }

    #[test]
    fn what_an_enclave_says_cannot_steer_the_terminal() {
        let evil = "\u{1b}[2J\u{202e}";
        let mut enclave = Enclave::new("http://a".into());
        let record = format!(
            "1 {} audit {{\"event\":\"refused\",\"code\":\"{}\",\"file_id\":\"{}\",\"time_ms\":1}}\n",
            "0".repeat(64),
            "\\u001b[2J",
            "\\u202e"
        );
        let lines = metrics(1).replace("0.1.0", evil).replace("\"decrypt\"", &format!("\"{evil}\""));
        let mut asked = answers(0, &lines, &record);
        asked.found.as_mut().unwrap().look.status =
            Ok(serde_json::json!({"missing": [evil], "audit": evil, "audit_fault": evil, "client_certificate": evil}));
        enclave.take(asked, None);
        let mut other = Enclave::new("http://b".into());
        other.take(silent(1, evil), None);
        let all = as_text(&[enclave, other], look(2, "").time);
        assert!(all.matches("\\u{1b}[2J").count() >= 6, "{all}");
        assert!(all.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{all:?}");
    }
}
