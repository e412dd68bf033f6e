//! Counts of values in equal bins: what every search for a good range looks at.

/// How many bins a search looks at.
pub(super) const BINS: usize = 2048;

/// Counts over `min..=max`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Counts {
    pub min: f32,
    pub max: f32,
    pub bins: Vec<f32>,
}

/// How many parts a bin is split into when the counts are moved to a wider range.
const PARTS: usize = 16;

impl Counts {
    /// No counts yet over a range.
    pub(super) fn new(min: f32, max: f32, bins: usize) -> Self {
        Self { min, max, bins: vec![0.0; bins] }
    }

    /// Counts `values`, which lie in the range. One value alone goes to the middle of a range one wide
    /// on each side, as in PyTorch's `histc`.
    pub(super) fn add(&mut self, values: impl Iterator<Item = f32>) {
        let (mut low, mut high) = (self.min, self.max);
        if low == high {
            (low, high) = (low - 1.0, high + 1.0);
        }
        // In integers first: adding one to a float of 2²⁴ changes nothing.
        let mut added = vec![0u64; self.bins.len()];
        for x in values {
            let at = ((x - low) / (high - low) * added.len() as f32) as usize;
            added[at.min(self.bins.len() - 1)] += 1;
        }
        self.bins.iter_mut().zip(added).for_each(|(bin, added)| *bin += added as f32);
    }

    /// The counts over a wider range: every old bin in equal parts, each where its middle lies.
    pub(super) fn widened(&self, min: f32, max: f32) -> Self {
        let mut wide = Self::new(min, max, self.bins.len());
        let count = self.bins.len();
        if self.min == self.max {
            let total: f32 = self.bins.iter().sum();
            let at = ((self.min - min) / (max - min) * count as f32) as usize;
            wide.bins[at.min(count - 1)] = total;
            return wide;
        }
        let parts = count * PARTS;
        let width = (self.max - self.min) / parts as f32;
        let mut bin = 0;
        for part in 0..parts {
            let middle = linspace(self.min, self.max, parts + 1, part) + 0.5 * width;
            while bin + 1 < count && linspace(min, max, count + 1, bin + 1) <= middle {
                bin += 1;
            }
            wide.bins[bin] += self.bins[part / PARTS] / PARTS as f32;
        }
        wide
    }

    /// The width of a bin.
    pub(super) fn width(&self) -> f32 {
        (self.max - self.min) / self.bins.len() as f32
    }

    /// The middle of each bin that has counts, with the count.
    pub(super) fn middles(&self) -> impl Iterator<Item = (f32, f32)> + '_ {
        let width = self.width();
        let filled = self.bins.iter().enumerate().filter(|(_, count)| **count > 0.0);
        filled.map(move |(i, &count)| (self.min + (i as f32 + 0.5) * width, count))
    }
}

/// Point `i` of `count` even ones from `from` to `to`, counted from the nearer end, as PyTorch does.
fn linspace(from: f32, to: f32, count: usize, i: usize) -> f32 {
    let step = (to - from) / (count - 1) as f32;
    if i < count / 2 { from + step * i as f32 } else { to - step * (count - 1 - i) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_loses_no_count() {
        let mut counts = Counts::new(0.0, 1.0, 8);
        counts.add([0.0, 0.1, 0.5, 1.0].into_iter());
        let wide = counts.widened(-1.0, 3.0);
        assert_eq!(wide.bins.iter().sum::<f32>(), 4.0);
        assert_eq!(wide.bins[..2], [0.0, 0.0]);
        assert_eq!(wide.bins[2..4], [2.0, 2.0]);
    }

    #[test]
    fn counts_go_on_where_a_float_has_no_next_whole_number() {
        let mut counts = Counts { min: 0.0, max: 1.0, bins: vec![16_777_216.0, 0.0] };
        counts.add([0.0; 1000].into_iter());
        assert_eq!(counts.bins, [16_778_216.0, 0.0]);
    }

    #[test]
    fn a_single_value_keeps_its_place() {
        let mut counts = Counts::new(2.0, 2.0, 4);
        counts.add([2.0; 3].into_iter());
        assert_eq!(counts.widened(0.0, 4.0).bins, [0.0, 0.0, 3.0, 0.0]);
    }
}
