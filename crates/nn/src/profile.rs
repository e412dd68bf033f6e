//! How a training step's time divides among its operators.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ottava_autograd::Span;

/// Where the time of the first steps of a run went.
///
/// Filled by a [`Trainer`](crate::Trainer) that was made
/// [`with_profile`](crate::Trainer::with_profile).
#[derive(Clone, Debug)]
pub struct Profile {
    start: Instant,
    limit: usize,
    steps: usize,
    entries: Vec<Entry>,
}

/// One thing that ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// An operator's name, or `data` (waiting for a batch), `optimizer`.
    pub name: &'static str,
    /// `forward`, `backward` or `step`.
    pub phase: &'static str,
    /// The shape of the operator's value; empty for what is no operator.
    pub shape: Vec<usize>,
    /// When it began, since the profile began.
    pub start: Duration,
    /// How long it took.
    pub duration: Duration,
}

/// All runs of one operator in one phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Total {
    /// As [`Entry::name`].
    pub name: &'static str,
    /// As [`Entry::phase`].
    pub phase: &'static str,
    /// How often it ran, in all steps.
    pub calls: usize,
    /// How long it took, in all steps.
    pub duration: Duration,
}

impl Profile {
    /// An empty profile that will take in so many steps.
    pub fn new(steps: usize) -> Self {
        Self { start: Instant::now(), limit: steps, steps: 0, entries: Vec::new() }
    }

    /// Everything that ran, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The steps taken in.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Sums over all steps, the largest first.
    pub fn totals(&self) -> Vec<Total> {
        let mut sums = BTreeMap::<_, (usize, Duration)>::new();
        for entry in &self.entries {
            let (calls, duration) = sums.entry((entry.name, entry.phase)).or_default();
            (*calls, *duration) = (*calls + 1, *duration + entry.duration);
        }
        let total = |((name, phase), (calls, duration))| Total { name, phase, calls, duration };
        let mut totals: Vec<Total> = sums.into_iter().map(total).collect();
        totals.sort_by_key(|total| std::cmp::Reverse(total.duration));
        totals
    }

    /// Whether it takes in more steps.
    pub(crate) fn open(&self) -> bool {
        self.steps < self.limit
    }

    pub(crate) fn end_step(&mut self) {
        self.steps += 1;
    }

    pub(crate) fn add(&mut self, name: &'static str, phase: &'static str, start: Instant) {
        let (shape, duration) = (Vec::new(), start.elapsed());
        let start = start.saturating_duration_since(self.start);
        self.entries.push(Entry { name, phase, shape, start, duration });
    }

    pub(crate) fn extend(&mut self, spans: Vec<Span>) {
        let start = self.start;
        self.entries.extend(spans.into_iter().map(|span| Entry {
            name: span.op,
            phase: if span.backward { "backward" } else { "forward" },
            shape: span.shape,
            start: span.start.saturating_duration_since(start),
            duration: span.duration,
        }));
    }
}
