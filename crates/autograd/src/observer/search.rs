//! Searches for the range that is best rounded: by squared error, by divergence, by quantile, and
//! PyTorch's.

use super::counts::Counts;

/// Shares of the whole range that [`least_error`] tries.
const SHARES: usize = 100;

/// The share of the range, taken from both ends, whose `levels` even levels have the least squared
/// error.
pub(super) fn least_error(counts: &Counts, levels: usize) -> (f32, f32) {
    let (min, max) = (counts.min.min(0.0), counts.max.max(0.0));
    let error = |lo: f32, hi: f32| -> f64 {
        let step = (hi - lo) / (levels - 1) as f32;
        let squared = |x: f32| {
            let rounded = ((x.clamp(lo, hi) - lo) / step).round() * step + lo;
            f64::from(rounded - x).powi(2)
        };
        counts.middles().map(|(x, count)| squared(x) * f64::from(count)).sum()
    };
    let share = |k: usize| (min * k as f32 / SHARES as f32, max * k as f32 / SHARES as f32);
    if min == max {
        return (min, max);
    }
    let mut best = (share(SHARES), error(min, max));
    for k in (1..SHARES).rev() {
        let (lo, hi) = share(k);
        let error = error(lo, hi);
        if error < best.1 {
            best = ((lo, hi), error);
        }
    }
    (best.0.0.max(counts.min.min(0.0)), best.0.1)
}

/// The range between the `1 − share` and the `share` quantile.
pub(super) fn quantiles(counts: &Counts, share: f32) -> (f32, f32) {
    let total: f64 = counts.bins.iter().map(|&c| f64::from(c)).sum();
    let tail = total * (1.0 - f64::from(share));
    let width = counts.width();
    let skipped = |bins: &mut dyn Iterator<Item = &f32>| {
        let mut sum = 0.0;
        let within = bins.take_while(|&&count| {
            sum += f64::from(count);
            sum <= tail
        });
        within.count() as f32
    };
    let low = skipped(&mut counts.bins.iter());
    let high = skipped(&mut counts.bins.iter().rev());
    (counts.min + low * width, counts.max - high * width)
}

/// The magnitude up to which `levels` levels keep the distribution best: least Kullback–Leibler
/// divergence of the clipped counts from the same counts merged into so many levels. `counts` are of
/// magnitudes.
pub(super) fn least_divergence(counts: &Counts, levels: usize) -> f32 {
    let bins = &counts.bins;
    let total: f64 = bins.iter().map(|&c| f64::from(c)).sum();
    let levels = levels.clamp(2, bins.len());
    let mut best = (bins.len(), f64::INFINITY);
    let mut beyond = total - bins[..levels].iter().map(|&c| f64::from(c)).sum::<f64>();
    for kept in levels..=bins.len() {
        let divergence = divergence(&bins[..kept], beyond, levels);
        if divergence < best.1 {
            best = (kept, divergence);
        }
        beyond -= bins.get(kept).map_or(0.0, |&c| f64::from(c));
    }
    best.0 as f32 * counts.width()
}

/// KL(P‖Q): P the kept counts, those beyond added to the last; Q the kept counts merged into `levels`
/// and spread evenly over the bins that are not empty.
fn divergence(kept: &[f32], beyond: f64, levels: usize) -> f64 {
    let last = kept.len() - 1;
    let sum_q: f64 = kept.iter().map(|&c| f64::from(c)).sum();
    let sum_p = sum_q + beyond.max(0.0);
    if sum_q == 0.0 {
        return f64::INFINITY;
    }
    let mut total = 0.0;
    for level in 0..levels {
        let (start, end) = (level * kept.len() / levels, (level + 1) * kept.len() / levels);
        let part = &kept[start..end];
        let filled = part.iter().filter(|&&c| c > 0.0).count();
        let q = part.iter().map(|&c| f64::from(c)).sum::<f64>() / filled.max(1) as f64 / sum_q;
        for (i, &count) in part.iter().enumerate() {
            let p = f64::from(count) + if start + i == last { beyond.max(0.0) } else { 0.0 };
            if p > 0.0 {
                // A bin that only the clipped mass fills has no level: any divergence is finite.
                let q = if count > 0.0 { q } else { f64::from(f32::EPSILON) };
                total += p / sum_p * (p / sum_p / q).ln();
            }
        }
    }
    total
}

/// PyTorch's search: clip a little more at the side where that skips more bins, as long as the squared
/// error of `levels` levels does not grow.
///
/// # Source
/// PyTorch `HistogramObserver._non_linear_param_search`.
pub(super) fn pytorch(counts: &Counts, levels: usize) -> (f32, f32) {
    const STEP: f64 = 1e-5;
    let bins = &counts.bins;
    let width = counts.width();
    let mut sums = Vec::with_capacity(bins.len());
    let mut total = 0.0f32;
    for &count in bins {
        total += count;
        sums.push(f64::from(total));
    }
    let total: f64 = f64::from(bins.iter().sum::<f32>());
    let (mut alpha, mut beta) = (0.0f64, 1.0f64);
    let (mut start, mut end) = (0, bins.len() - 1);
    let mut least = f64::INFINITY;
    while alpha < beta {
        let (next_alpha, next_beta) = (alpha + STEP, beta - STEP);
        let (mut l, mut r) = (start, end);
        while l < end && sums[l] < next_alpha * total {
            l += 1;
        }
        while r > start && sums[r] > next_beta * total {
            r -= 1;
        }
        let (mut next_start, mut next_end) = (start, end);
        if l - start > end - r {
            next_start = l;
            alpha = next_alpha;
        } else {
            next_end = r;
            beta = next_beta;
        }
        if (next_start, next_end) == (start, end) {
            continue;
        }
        let error = rounding_error(bins, width, next_start, next_end, levels);
        if error > least {
            break;
        }
        least = error;
        (start, end) = (next_start, next_end);
    }
    (counts.min + width * start as f32, counts.min + width * (end + 1) as f32)
}

/// The squared error of counts spread evenly over their bins, when bins `start..=end` are rounded to
/// `levels` levels and the others clipped.
fn rounding_error(bins: &[f32], width: f32, start: usize, end: usize, levels: usize) -> f64 {
    let width = f64::from(width);
    let level = width * (end - start + 1) as f64 / levels as f64;
    if level == 0.0 {
        return 0.0;
    }
    // ∫ x² over a..b with the given density
    let integral = |a: f64, b: f64, density: f64| density * (b.powi(3) - a.powi(3)) / 3.0;
    let top = (levels - 1) as f64;
    bins.iter()
        .enumerate()
        .map(|(i, &count)| {
            let density = f64::from(count) / width;
            let begin = (i as f64 - start as f64) * width;
            let stop = begin + width;
            let first = (begin / level).floor().clamp(0.0, top);
            let last = (stop / level).floor().clamp(0.0, top);
            let (half, from) = (level / 2.0, begin - (first + 0.5) * level);
            integral(from, half, density)
                + (last - first - 1.0) * integral(-half, half, density)
                + integral(-half, stop - (last + 0.5) * level, density)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32]) -> Counts {
        let min = values.iter().copied().fold(f32::INFINITY, f32::min);
        let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut counts = Counts::new(min, max, 2048);
        counts.add(values.iter().copied());
        counts
    }

    /// 10 000 values near zero and one far away.
    fn outlier() -> Counts {
        let mut values: Vec<f32> = (0..10_000).map(|i| (i as f32 / 5000.0 - 1.0).powi(3)).collect();
        values.push(40.0);
        of(&values)
    }

    #[test]
    fn an_outlier_is_clipped_when_levels_are_few() {
        let (lo, hi) = least_error(&outlier(), 16);
        assert!(lo < 0.0 && hi < 10.0, "{lo}..{hi}");
        let (lo, hi) = quantiles(&outlier(), 0.999);
        assert!(lo < -0.9 && hi < 2.0, "{lo}..{hi}");
        let magnitudes: Vec<f32> = (0..10_000).map(|i| (i as f32 / 10_000.0).powi(3)).collect();
        let mut counts = Counts::new(0.0, 40.0, 2048);
        counts.add(magnitudes.into_iter().chain([40.0]));
        assert!(least_divergence(&counts, 8) < 10.0);
    }

    #[test]
    fn without_outliers_little_is_clipped() {
        let even: Vec<f32> = (0..10_000).map(|i| i as f32 / 10_000.0).collect();
        let counts = of(&even);
        assert!(least_error(&counts, 256).1 > 0.98);
        assert!(quantiles(&counts, 0.9999).1 > 0.99);
        assert!(least_divergence(&counts, 128) > 0.9);
    }

    /// The values that PyTorch 1.13 gives for two fixed inputs.
    #[test]
    fn pytorchs_search_gives_pytorchs_range() {
        let values: Vec<f32> = (0..1000).map(|k| k as f32 / 100.0).chain([100.0]).collect();
        let (lo, hi) = pytorch(&of(&values), 256);
        assert_eq!((lo, hi), (0.0, 99.951_17));
    }
}
