//! Prometheus' text format, version 0.0.4.
use std::fmt::{Display, Write as _};

pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics, written one family after the other.
#[derive(Default)]
pub struct Page(String);

/// One metric with its samples.
pub struct Family<'p> {
    page: &'p mut Page,
    name: &'static str,
}

impl Page {
    /// What only grows.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "counter")
    }

    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "gauge")
    }

    pub fn histogram(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "histogram")
    }

    pub fn finish(self) -> String {
        self.0
    }

    fn family(&mut self, name: &'static str, help: &str, kind: &str) -> Family<'_> {
        // Help and label values are our own words, but for versions; what would end a line early is escaped below.
        write(&mut self.0, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Family { page: self, name }
    }
}

impl Family<'_> {
    pub fn value(&mut self, value: impl Display) -> &mut Self {
        self.of(&[], value)
    }

    pub fn of(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.part("", labels, value)
    }

    /// A sample of the family under its name with a suffix, as histograms have them.
    pub fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        write(&mut self.page.0, format_args!("{}{suffix}{labels} {value}\n", self.name));
        self
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

fn write(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_prometheus_reads_them() {
        let mut page = Page::default();
        page.counter("a_total", "How many.").of(&[("kind", "x\"\n\\")], 1).of(&[], 2);
        page.gauge("b", "Now.").value(0.5);
        let want = "# HELP a_total How many.\n# TYPE a_total counter\na_total{kind=\"x\\\"\\n\\\\\"} 1\na_total 2\n\
                    # HELP b Now.\n# TYPE b gauge\nb 0.5\n";
        assert_eq!(page.finish(), want);
    }
}
