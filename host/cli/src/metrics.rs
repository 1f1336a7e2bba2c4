//! Reads what Prometheus reads: metrics in its text format 0.0.4, of a daemon or of a keeper.
//!
//! What is asked is untrusted. A line that is not a sample, or whose value is not a finite number, is passed over, and so is what
//! comes after [`MOST`] samples.

use std::collections::BTreeMap;
use std::ops::Add;

/// Most samples of a page, several times as many as a daemon has. Each is held against all others.
const MOST: usize = 2000;

/// A number, with the labels that tell it from others of its name.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Sample {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// A page of metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Metrics(Vec<Sample>);

/// How many observations were at most as large as each bound, the bounds ascending; the last may be infinite.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Histogram(Vec<(f64, f64)>);

/// An estimate from a histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Quantile {
    /// About this.
    About(f64),
    /// More than the largest bound, which is this.
    Above(f64),
}

impl Metrics {
    /// Reads a page.
    pub(crate) fn parse(text: &str) -> Metrics {
        Metrics(text.lines().filter_map(sample).take(MOST).collect())
    }

    /// The sample of this name that has no labels.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|sample| sample.name == name && sample.labels.is_empty()).map(|sample| sample.value)
    }

    /// The samples of this name by their value of a label; those with the same one are added up.
    pub(crate) fn by(&self, name: &str, label: &str) -> BTreeMap<&str, f64> {
        let mut all = BTreeMap::new();
        for sample in self.0.iter().filter(|sample| sample.name == name) {
            let Some(value) = sample.label(label) else { continue };
            *all.entry(value).or_insert(0.0) += sample.value;
        }
        all
    }

    /// The sum of the samples of this name whose labels have these values.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| labels.iter().all(|&(label, value)| sample.label(label) == Some(value));
        self.0.iter().filter(|sample| sample.name == name).filter(has).map(|sample| sample.value).fold(0.0, Add::add)
    }

    /// The histogram of this name; where it has one for each route, those of the given routes together.
    pub(crate) fn histogram(&self, name: &str, routes: &[&str]) -> Histogram {
        let bucket = format!("{name}_bucket");
        let counts = |sample: &&Sample| {
            sample.name == bucket && sample.label("route").is_none_or(|route| routes.contains(&route))
        };
        let mut bounds: Vec<(f64, f64)> = Vec::new();
        for sample in self.0.iter().filter(counts) {
            let bound = sample.label("le").and_then(|le| le.parse::<f64>().ok()).filter(|le| !le.is_nan());
            let Some(bound) = bound else { continue };
            match bounds.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
                Some((_, count)) => *count += sample.value,
                None => bounds.push((bound, sample.value)),
            }
        }
        bounds.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        Histogram(bounds)
    }

    /// Whether these are of another start of the process than the ones before: some counter has gone back, or is not there
    /// any more.
    pub(crate) fn has_gone_back_since(&self, before: &Metrics) -> bool {
        let counts = |name: &str| ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end));
        let same = |one: &Sample, other: &Sample| one.name == other.name && one.labels == other.labels;
        let gone_back = |old: &Sample| self.0.iter().find(|new| same(old, new)).is_none_or(|new| new.value < old.value);
        before.0.iter().filter(|sample| counts(&sample.name)).any(gone_back)
    }
}

impl Histogram {
    /// What was observed since the earlier one.
    pub(crate) fn since(mut self, before: &Histogram) -> Histogram {
        for (bound, count) in &mut self.0 {
            let earlier = before.0.iter().find(|(known, _)| known.total_cmp(bound).is_eq());
            *count = (*count - earlier.map_or(0.0, |(_, count)| *count)).max(0.0);
        }
        self
    }

    /// The value that this part of the observations, 0 to 1, does not exceed, as Prometheus' histogram_quantile estimates it:
    /// within a bucket they are taken to be evenly spread. `None` without observations.
    pub(crate) fn quantile(&self, part: f64) -> Option<Quantile> {
        let total = self.0.last().map(|(_, count)| *count).filter(|total| *total > 0.0)?;
        let rank = part * total;
        let at = self.0.iter().position(|(_, count)| *count >= rank)?;
        let (bound, count) = self.0[at];
        let (from, before) = at.checked_sub(1).map_or((0.0, 0.0), |below| self.0[below]);
        if bound.is_infinite() {
            return Some(Quantile::Above(from));
        }
        let within = if count > before { ((rank - before) / (count - before)).clamp(0.0, 1.0) } else { 1.0 };
        Some(Quantile::About(from + (bound - from) * within))
    }
}

/// `NAME VALUE` or `NAME{LABEL="VALUE",…} VALUE`, with a time behind it that nobody needs here.
fn sample(line: &str) -> Option<Sample> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' ', '\t'])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse::<f64>().ok().filter(|value| value.is_finite())?;
    (!name.is_empty()).then(|| Sample { name: name.to_owned(), labels, value })
}

/// The labels up to the closing brace, and what is behind it.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, behind) = rest.split_once("=\"")?;
        let (value, behind) = quoted(behind)?;
        labels.push((name.trim().to_owned(), value));
        rest = behind;
    }
}

/// A label's value up to the closing quotation mark, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels_and_what_is_no_sample_is_passed_over() {
        let text = "# HELP x help\n# TYPE x counter\nx 3\n\nx{a=\"1\",b=\"}, \\\"q\\\" \\\\ \\n\"} 4 1395066363000\n  y{} 1e3\n\
                    no value\nx{a=\"1\" 5\nx{a=\"open} 5\nz NaN\nz +Inf\n{} 3\n \u{1b}[2J\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.0.len(), 3, "{metrics:?}");
        assert_eq!((metrics.value("x"), metrics.value("y"), metrics.value("z")), (Some(3.0), Some(1000.0), None));
        assert_eq!(metrics.by("x", "b"), BTreeMap::from([("}, \"q\" \\ \n", 4.0)]));
    }

    #[test]
    fn no_more_samples_are_read_than_a_daemon_may_have() {
        let text: String = (0..3000).map(|n| format!("x{{n=\"{n}\"}} 1\n")).collect();
        let metrics = Metrics::parse(&text);
        assert_eq!(metrics.sum("x", &[]), f64::from(u32::try_from(MOST).unwrap()));
    }

    #[test]
    fn samples_are_added_up_by_a_label_and_over_labels() {
        let metrics = Metrics::parse(
            "r{route=\"a\",code=\"200\"} 3\nr{route=\"b\",code=\"200\"} 4\nr{route=\"a\",code=\"422\"} 1\n",
        );
        assert_eq!(metrics.by("r", "route"), BTreeMap::from([("a", 4.0), ("b", 4.0)]));
        assert_eq!(
            (metrics.sum("r", &[("code", "200")]), metrics.sum("r", &[("route", "a"), ("code", "422")])),
            (7.0, 1.0)
        );
        assert_eq!(metrics.sum("none", &[]), 0.0);
    }

    /// Buckets of a route with these counts, up to and including each bound.
    fn buckets(route: &str, counts: [u32; 3]) -> String {
        let line = |le: &str, n: u32| format!("d_bucket{{route=\"{route}\",le=\"{le}\"}} {n}\n");
        line("0.1", counts[0]) + &line("+Inf", counts[2]) + &line("0.5", counts[1])
    }

    #[test]
    fn a_quantile_is_estimated_as_prometheus_does_it() {
        let metrics =
            Metrics::parse(&(buckets("a", [5, 9, 10]) + &buckets("b", [5, 9, 10]) + &buckets("c", [0, 0, 90])));
        let both = metrics.histogram("d", &["a", "b"]);
        assert_eq!(both.0, [(0.1, 10.0), (0.5, 18.0), (f64::INFINITY, 20.0)]);
        let about = |histogram: &Histogram, part| match histogram.quantile(part) {
            Some(Quantile::About(value)) => value,
            other => panic!("{other:?}"),
        };
        let is = |histogram: &Histogram, part, expected: f64| (about(histogram, part) - expected).abs() < 1e-9;
        // histogram_quantile(0.5, …) and so on, by Prometheus 2.42.
        assert!(is(&both, 0.25, 0.05) && is(&both, 0.5, 0.1) && is(&both, 0.7, 0.3));
        assert_eq!(both.quantile(0.99), Some(Quantile::Above(0.5)));
        assert_eq!(metrics.histogram("d", &["none"]).quantile(0.5), None);
        // Between two looks only what came in between counts.
        let later = Metrics::parse(&buckets("a", [5, 19, 20]));
        let between = later.histogram("d", &["a"]).since(&metrics.histogram("d", &["a"]));
        assert_eq!(between.0, [(0.1, 0.0), (0.5, 10.0), (f64::INFINITY, 10.0)]);
        assert!(is(&between, 0.5, 0.3));
        assert_eq!(between.clone().since(&between).quantile(0.5), None);
    }

    #[test]
    fn a_counter_that_went_back_or_went_away_is_another_start_and_a_gauge_is_not() {
        let before = Metrics::parse("a_total{code=\"1\"} 5\nleft_bytes 7\n");
        for (text, restarted) in [
            ("a_total{code=\"1\"} 5\nleft_bytes 3\n", false),
            ("a_total{code=\"1\"} 9\nb_total 1\n", false),
            ("a_total{code=\"1\"} 4\nleft_bytes 7\n", true),
            ("a_total{code=\"2\"} 9\n", true),
        ] {
            assert_eq!(Metrics::parse(text).has_gone_back_since(&before), restarted, "{text}");
        }
    }
}
