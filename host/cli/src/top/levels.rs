//! From where on a figure is a worry: where the alerts of host/deploy/monitoring begin.

use super::figures::{Figures, Used};

const DAY: f64 = 86_400.0;
/// Until the client certificate expires (TeemarkCertificateExpires).
const CERTIFICATE_WARNS: f64 = 14.0 * DAY;
const CERTIFICATE_ALARMS: f64 = 2.0 * DAY;
/// Of the clock, in seconds (TeemarkClockOff).
const DRIFT: f64 = 2.0;
/// The part of TEEMARK_MEMORY that is left (TeemarkMemoryNearLimit).
const MEMORY_LEFT: f64 = 0.1;
/// The part of the grants that are remembered (TeemarkGrantsNearLimit), and of requests in flight
/// (TeemarkRequestsNearLimit).
const NEAR_LIMIT: f64 = 0.8;

/// How much of a worry something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Well,
    Warning,
    Critical,
}

fn warning_if(is: bool) -> Level {
    if is { Level::Warning } else { Level::Well }
}

/// Whether files can be had.
pub(super) fn readiness(figures: &Figures) -> Level {
    match (figures.ready, figures.draining) {
        (_, true) => Level::Warning,
        (true, false) => Level::Well,
        (false, false) => Level::Critical,
    }
}

pub(super) fn certificate(seconds: f64) -> Level {
    match seconds {
        s if s < CERTIFICATE_ALARMS => Level::Critical,
        s if s < CERTIFICATE_WARNS => Level::Warning,
        _ => Level::Well,
    }
}

pub(super) fn drift(seconds: f64) -> Level {
    warning_if(seconds.abs() > DRIFT)
}

pub(super) fn memory(memory: Used) -> Level {
    warning_if((memory.limit - memory.used) / memory.limit < MEMORY_LEFT)
}

pub(super) fn near_limit(used: Used) -> Level {
    warning_if(used.part() > NEAR_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thresholds_are_those_of_the_alerts() {
        let alerts = std::fs::read_to_string("../deploy/monitoring/alerts.yml").unwrap();
        let days =
            |seconds: f64| format!("certificate_not_after_timestamp_seconds - time() < {} * 86400", seconds / DAY);
        for expression in [
            days(CERTIFICATE_WARNS),
            days(CERTIFICATE_ALARMS),
            format!("abs(teemark_clock_drift_seconds) > {DRIFT}"),
            format!("teemark_memory_left_bytes / teemark_memory_limit_bytes < {MEMORY_LEFT}"),
            format!("teemark_grants_remembered / teemark_grants_remembered_limit > {NEAR_LIMIT}"),
            format!("group_left () teemark_connections_limit > {NEAR_LIMIT}"),
        ] {
            assert!(alerts.contains(&expression), "{expression}");
        }
    }

    #[test]
    fn a_figure_is_a_worry_from_its_threshold_on() {
        let used = |used| Used { used, limit: 100.0 };
        assert_eq!((certificate(2.0 * DAY - 1.0), certificate(2.0 * DAY)), (Level::Critical, Level::Warning));
        assert_eq!((certificate(14.0 * DAY - 1.0), certificate(14.0 * DAY)), (Level::Warning, Level::Well));
        assert_eq!((drift(-2.01), drift(2.0)), (Level::Warning, Level::Well));
        assert_eq!((memory(used(91.0)), memory(used(90.0))), (Level::Warning, Level::Well));
        assert_eq!((near_limit(used(81.0)), near_limit(used(80.0))), (Level::Warning, Level::Well));
    }
}
