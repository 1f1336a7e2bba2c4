//! Numbers as people read them.

use crate::metrics::Quantile;

/// So many a second.
pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0".to_owned(),
        r if r < 0.05 => "<0.1".to_owned(),
        r if r < 9.95 => format!("{r:.1}"),
        r if r < 9_999.5 => format!("{r:.0}"),
        r => format!("{:.1}k", r / 1000.0),
    }
}

/// Bytes, in binary units.
pub(super) fn bytes(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1023.5 {
            return if unit == "B" || value >= 99.95 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A time that a request took.
pub(super) fn took(seconds: f64) -> String {
    match seconds {
        s if s < 0.000_95 => "<1 ms".to_owned(),
        s if s < 0.999_5 => format!("{:.0} ms", s * 1000.0),
        s if s < 9.95 => format!("{s:.1} s"),
        s => format!("{s:.0} s"),
    }
}

/// The same of an estimate; – without requests.
pub(super) fn quantile(quantile: Option<Quantile>) -> String {
    match quantile {
        None => "–".to_owned(),
        Some(Quantile::About(seconds)) => took(seconds),
        Some(Quantile::Above(seconds)) => format!(">{}", took(seconds)),
    }
}

/// How long something has lasted: `3d 04:05`, or `04:05:06`.
pub(super) fn lasted(seconds: f64) -> String {
    let whole = seconds.max(0.0).floor();
    let (days, rest) = ((whole / 86_400.0).floor(), whole % 86_400.0);
    let (hours, minutes, seconds) = ((rest / 3600.0).floor(), (rest % 3600.0 / 60.0).floor(), rest % 60.0);
    match days {
        0.0 => format!("{hours:02.0}:{minutes:02.0}:{seconds:02.0}"),
        days => format!("{days:.0}d {hours:02.0}:{minutes:02.0}"),
    }
}

/// A part of a whole, in per cent.
pub(super) fn percent(part: f64) -> String {
    format!("{:.0}%", part * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_never_round_to_another_unit() {
        for (value, shown) in
            [(0.0, "0"), (0.01, "<0.1"), (0.5, "0.5"), (9.96, "10"), (123.4, "123"), (12_345.0, "12.3k")]
        {
            assert_eq!(rate(value), shown);
        }
        for (value, shown) in [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (1023.7, "1.0 KiB"),
            (153_600.0, "150 KiB"),
            (4.5e6, "4.3 MiB"),
            (2e13, "18.2 TiB"),
        ] {
            assert_eq!(bytes(value), shown);
        }
        for (value, shown) in [(0.0, "<1 ms"), (0.023, "23 ms"), (0.9996, "1.0 s"), (1.24, "1.2 s"), (30.0, "30 s")] {
            assert_eq!(took(value), shown);
        }
        for (value, shown) in [(59.9, "00:00:59"), (3_723.0, "01:02:03"), (270_300.0, "3d 03:05"), (-1.0, "00:00:00")] {
            assert_eq!(lasted(value), shown);
        }
        assert_eq!((quantile(None), quantile(Some(Quantile::Above(30.0)))), ("–".into(), ">30 s".into()));
    }
}
