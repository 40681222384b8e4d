//! Metrics on their way from plain values to the text format of Prometheus.

use std::fmt;

use failover::http::Page;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::latency::Histogram;

/// Upper bounds of the buckets of durations, in microseconds: from a fast disk to a hang.
const BOUNDS_US: [u64; 16] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 10_000_000,
];

/// Those of what clients wait for when an office changes, from a switchover to a human.
pub const PAUSES_US: [u64; 12] = [
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    1_500_000,
    2_000_000,
    3_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    120_000_000,
];

/// Labels of one sample.
pub type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
enum Value {
    Gauge(f64),
    Counter(u64),
    Histogram { sum: f64, count: u64, buckets: Vec<(f64, u64)> },
}

#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    samples: Vec<(Labels, Value)>,
}

/// Families of metrics in the order in which they were first named.
#[derive(Debug, Default)]
pub struct Families(Vec<Family>);

impl Families {
    /// A value that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, labels: Labels, value: f64) {
        self.add(name, help, labels, Value::Gauge(value));
    }

    /// 1 for yes, 0 for no.
    pub fn flag(&mut self, name: &'static str, help: &'static str, labels: Labels, value: bool) {
        self.gauge(name, help, labels, f64::from(u8::from(value)));
    }

    /// A count that only rises; `_total` comes behind its name.
    pub fn counter(&mut self, name: &'static str, help: &'static str, labels: Labels, value: u64) {
        self.add(name, help, labels, Value::Counter(value));
    }

    /// Durations.
    pub fn durations(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels,
        histogram: &Histogram,
    ) {
        self.durations_by(name, help, labels, (histogram, &BOUNDS_US));
    }

    /// Durations, with these upper bounds of the buckets, in microseconds.
    pub fn durations_by(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels,
        (histogram, bounds_us): (&Histogram, &[u64]),
    ) {
        let bucket = |us: &u64| (*us as f64 / 1e6, histogram.at_most(us * 1_000));
        // The encoder adds them up: each bucket is given what the ones before it do not have. It
        // writes the one without bound itself.
        let mut below = 0;
        let mut buckets: Vec<(f64, u64)> = Vec::with_capacity(bounds_us.len());
        for (bound, at_most) in bounds_us.iter().map(bucket) {
            buckets.push((bound, at_most - below));
            below = at_most;
        }
        let sum = histogram.sum_ns() as f64 / 1e9;
        self.add(name, help, labels, Value::Histogram { sum, count: histogram.count(), buckets });
    }

    /// One series for every state there is, 1 for the present one.
    pub fn states(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &Labels,
        (label, states, present): (&'static str, &[&str], &str),
    ) {
        for state in states {
            let mut labels = labels.clone();
            labels.push((label, (*state).to_owned()));
            self.flag(name, help, labels, *state == present);
        }
    }

    fn add(&mut self, name: &'static str, help: &'static str, labels: Labels, value: Value) {
        match self.0.iter_mut().find(|family| family.name == name) {
            Some(family) => family.samples.push((labels, value)),
            None => self.0.push(Family { name, help, samples: vec![(labels, value)] }),
        }
    }

    /// The page with all of them.
    pub fn into_page(self) -> Page {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut body = String::new();
        let (status, body) = match prometheus_text::encode(&mut body, &registry) {
            Ok(()) => (200, body),
            Err(error) => (500, error.to_string()),
        };
        Page { status, content_type: prometheus_text::CONTENT_TYPE, body }
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let kind = match family.samples[0].1 {
                Value::Gauge(_) => MetricType::Gauge,
                Value::Counter(_) => MetricType::Counter,
                Value::Histogram { .. } => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (labels, value) in &family.samples {
                let mut sample = metric.encode_family(labels)?;
                match value {
                    Value::Gauge(value) => sample.encode_gauge(value)?,
                    Value::Counter(value) => {
                        sample.encode_counter::<Labels, u64, f64>(value, None)?
                    }
                    Value::Histogram { sum, count, buckets } => {
                        sample.encode_histogram::<Labels>(*sum, *count, buckets, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use replicator_core::Span;

    use super::*;

    #[test]
    fn every_kind_is_written_as_prometheus_reads_it() {
        let mut families = Families::default();
        let labels = |name: &str| vec![("resource", name.to_owned())];
        families.gauge("replicator_dirty_bytes", "Bytes.", labels("a\"b"), 4096.0);
        families.gauge("replicator_dirty_bytes", "Bytes.", labels("c"), 0.0);
        families.counter("replicator_errors", "Errors.", labels("c"), 3);
        families.states("replicator_role", "Role.", &labels("c"), ("role", &["x", "y"], "y"));
        let mut durations = Histogram::default();
        for us in [10, 70, 3_000, 20_000_000] {
            durations.record(Span(us * 1_000));
        }
        families.durations("replicator_took_seconds", "Time.", Labels::new(), &durations);
        let page = families.into_page();
        assert_eq!(page.status, 200);
        for line in [
            "# TYPE replicator_dirty_bytes gauge",
            "replicator_dirty_bytes{resource=\"a\\\"b\"} 4096.0",
            "# TYPE replicator_errors_total counter",
            "replicator_errors_total{resource=\"c\"} 3",
            "replicator_role{resource=\"c\",role=\"x\"} 0.0",
            "replicator_role{resource=\"c\",role=\"y\"} 1.0",
            "replicator_took_seconds_bucket{le=\"5e-05\"} 1",
            "replicator_took_seconds_bucket{le=\"0.0001\"} 2",
            "replicator_took_seconds_bucket{le=\"0.005\"} 3",
            "replicator_took_seconds_bucket{le=\"10\"} 3",
            "replicator_took_seconds_bucket{le=\"+Inf\"} 4",
            "replicator_took_seconds_count 4",
        ] {
            assert!(page.body.lines().any(|it| it == line), "{line}\nnot in\n{}", page.body);
        }
    }
}
