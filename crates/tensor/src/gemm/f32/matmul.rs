use super::{Matrix, Panels, WHOLE, most_rows, multiply};
use crate::simd::f32::dispatch_f32;
use crate::{Error, Level, Result, Tensor, parallel};

/// Multiply-accumulates worth a task of their own: about 100 microseconds.
const TASK_MACS: usize = 1 << 21;

/// Rows of a task that use what it brings into the cache of the right operand well, if there are so many.
const TASK_ROWS: usize = 168;

/// Tiles of rows of a task at the least: fewer wait for the right operand.
const TASK_TILES: usize = 8;

/// The matrix product `c[i, j] = Σₖ a[i, k]·b[k, j]`.
///
/// Transposed views are read where they lie, and on the left any others too. The result is row-major and
/// the same, bit for bit, for any number of threads.
///
/// # Shapes
/// `a`: `[m, k]`; `b`: `[k, n]`; result: `[m, n]`.
///
/// # Errors
/// [`Error::Rank`] unless both are matrices, [`Error::ShapeMismatch`] if the inner sizes differ,
/// [`Error::Overflow`].
///
/// ```
/// use ottava_tensor::{Tensor, gemm::matmul};
///
/// let a = Tensor::new(&[1, 2], [3.0f32, 4.0])?;
/// let b = Tensor::new(&[2, 2], [1.0f32, 0.0, 0.5, 2.0])?;
/// assert_eq!(matmul(&a, &b)?.to_vec(), [5.0, 8.0]);
/// assert_eq!(matmul(&a, &b.transpose(0, 1)?)?.to_vec(), [3.0, 9.5]);
/// # Ok::<(), ottava_tensor::Error>(())
/// ```
pub fn matmul(a: &Tensor<f32>, b: &Tensor<f32>) -> Result<Tensor<f32>> {
    matmul_on(Level::current(), a, b)
}

/// [`matmul`] on a chosen instruction set.
///
/// # Errors
/// As [`matmul`].
pub fn matmul_on(level: Level, a: &Tensor<f32>, b: &Tensor<f32>) -> Result<Tensor<f32>> {
    let [_, k] = a.dims("matmul")?;
    let [inner, _] = b.dims("matmul")?;
    if inner != k {
        return Err(mismatch(a, b.shape()));
    }
    PackedMatrix::new_on(level, b)?.multiply(a)
}

fn mismatch(a: &Tensor<f32>, right: &[usize]) -> Error {
    Error::ShapeMismatch { op: "matmul", left: a.shape().to_vec(), right: right.to_vec() }
}

/// The right operand of many products: packed once for what the kernel reads.
///
/// ```
/// use ottava_tensor::{Tensor, gemm::PackedMatrix};
///
/// let weights = PackedMatrix::new(&Tensor::new(&[2, 2], [1.0f32, 0.0, 0.5, 2.0])?)?;
/// for x in [[3.0, 4.0], [0.0, 1.0]] {
///     let x = Tensor::new(&[1, 2], x)?;
///     assert_eq!(weights.multiply(&x)?.shape(), [1, 2]);
/// }
/// # Ok::<(), ottava_tensor::Error>(())
/// ```
pub struct PackedMatrix {
    level: Level,
    panels: Panels,
}

impl PackedMatrix {
    /// Packs `b`, `[k, n]`, of any strides.
    ///
    /// # Errors
    /// [`Error::Rank`] unless it is a matrix; [`Error::Overflow`].
    pub fn new(b: &Tensor<f32>) -> Result<Self> {
        Self::new_on(Level::current(), b)
    }

    /// [`new`](Self::new) for a chosen instruction set.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn new_on(level: Level, b: &Tensor<f32>) -> Result<Self> {
        let [k, n] = b.dims("matmul")?;
        // Panels are whole vectors wide.
        crate::shape::checked_len::<f32>(&[k, n.saturating_add(Panels::SLACK)])?;
        Ok(Self { level, panels: Panels::from_matrix(level, b) })
    }

    /// `a·b`: [`matmul`], bit for bit.
    ///
    /// # Shapes
    /// `a`: `[m, k]`; result: `[m, n]`.
    ///
    /// # Errors
    /// As [`matmul`].
    pub fn multiply(&self, a: &Tensor<f32>) -> Result<Tensor<f32>> {
        let [m, k] = a.dims("matmul")?;
        let n = self.panels.columns();
        if self.panels.depth() != k {
            return Err(mismatch(a, &[self.panels.depth(), n]));
        }
        crate::shape::checked_len::<f32>(&[m, n])?;
        if m == 0 || n == 0 || k == 0 {
            return Ok(Tensor::zeros(&[m, n]));
        }
        Ok(product(self.level, a, [m, n, k], &self.panels))
    }
}

/// Rows of a task: whole tiles, and of about equal tasks as many as threads share best. None if rows are too few for
/// all threads to have about the same of them.
///
/// If the right operand stays in the cache from task to task, there may be many: threads are not equally fast.
fn task_rows(m: usize, row_macs: usize, tile: usize) -> Option<usize> {
    let (tiles, threads) = (m.div_ceil(tile), parallel::threads());
    let worth = (TASK_MACS / row_macs).div_ceil(tile);
    let most = worth.max(TASK_ROWS / tile).min(tiles);
    let least = worth.max(TASK_TILES).min(most);
    let turns = |size: usize| tiles.div_ceil(size).div_ceil(threads) * size;
    let sizes = least..=most;
    // The smallest of the cheapest, or the largest.
    let size = if row_macs <= WHOLE {
        sizes.min_by_key(|&size| turns(size))?
    } else {
        sizes.rev().min_by_key(|&size| turns(size))?
    };
    let even = tiles.div_ceil(threads);
    (turns(size) <= even + even / 8).then_some(size * tile)
}

fn product(level: Level, a: &Tensor<f32>, [m, n, k]: [usize; 3], right: &Panels) -> Tensor<f32> {
    // The first block of the depth overwrites what is there.
    let mut out = Tensor::recycled(&[m, n]);
    let left = Matrix { data: a.memory(), strides: [a.strides()[0], a.strides()[1]] };
    let tile = dispatch_f32!(level, isa => most_rows(isa, right.get(0).0.width));
    let rows = if m.saturating_mul(n).saturating_mul(k) < 2 * TASK_MACS {
        Some(m)
    } else {
        task_rows(m, n * k, tile)
    };
    if let Some(rows) = rows {
        parallel::for_each_chunk(out.data_mut(), rows * n, |i, out| {
            let rows = i * rows..m.min((i + 1) * rows);
            let all = 0..right.count();
            dispatch_f32!(level, isa => multiply(isa, &left, rows, right, all, None, out,
                #[inline(always)] |row| row * n));
        });
        return out;
    }

    // Few rows: tasks by columns too, each into memory of its own, which is then copied.
    let rows = TASK_ROWS.min(m);
    let row_tasks = m.div_ceil(rows);
    let per_task = right.count().div_ceil(8);
    let column_tasks = right.count().div_ceil(per_task);
    let blocks = parallel::map(row_tasks * column_tasks, |task| {
        let (i, j) = (task / column_tasks, task % column_tasks);
        let rows = i * rows..m.min((i + 1) * rows);
        let panels = j * per_task..right.count().min((j + 1) * per_task);
        let start = right.get(panels.start).0.start;
        let last = right.get(panels.end - 1).0;
        let width = last.start + last.columns - start;
        let mut block = vec![0.0; rows.len() * width];
        dispatch_f32!(level, isa => multiply(isa, &left, rows.clone(), right, panels, None, &mut block,
            #[inline(always)] |row| row * width));
        (rows, start, width, block)
    });
    let data = out.data_mut();
    for (rows, start, width, block) in blocks {
        for (row, values) in rows.zip(block.chunks_exact(width)) {
            data[row * n + start..][..width].copy_from_slice(values);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use crate::parallel::tests::with_threads;
    use proptest::prelude::*;

    /// Values in [-1, 1] from a counter: tests need no generator, only something uneven.
    pub(crate) fn uneven(shape: &[usize], seed: usize) -> Tensor<f32> {
        let len = shape.iter().product::<usize>();
        let value = |i: usize| {
            let hash = (i + seed * 7919).wrapping_mul(2_654_435_761) % 20_011;
            hash as f32 / 10_005.0 - 1.0
        };
        Tensor::new(shape, (0..len).map(value).collect::<Vec<f32>>()).unwrap()
    }

    #[track_caller]
    fn assert_close(level: Level, c: &Tensor<f32>, expected: &[f64], k: usize) {
        // |error| ≤ γₖ·Σ|a·b| ≤ k·ε·k for values up to one; in practice far less.
        let bound = (k as f64 + 2.0) * f64::from(f32::EPSILON) * (k as f64).max(1.0);
        for (i, (c, e)) in c.iter().zip(expected).enumerate() {
            assert!((f64::from(c) - e).abs() <= bound, "{level:?}: element {i}: {c} for {e}");
        }
    }

    proptest! {
        #[test]
        fn every_level_multiplies_like_the_reference(
            m in 1usize..70, k in 1usize..60, n in 1usize..80, ta in any::<bool>(), tb in any::<bool>()
        ) {
            let a = if ta { uneven(&[k, m], 1).transpose(0, 1).unwrap() } else { uneven(&[m, k], 1) };
            let b = if tb { uneven(&[n, k], 2).transpose(0, 1).unwrap() } else { uneven(&[k, n], 2) };
            let expected = reference::matmul(&a, &b);
            for level in Level::available() {
                assert_close(level, &matmul_on(level, &a, &b).unwrap(), &expected, k);
            }
        }
    }

    #[test]
    fn deep_wide_and_strided_products() {
        for (m, k, n) in [(3, 1000, 300), (200, 800, 33), (49, 777, 512), (300, 385, 100)] {
            let a = uneven(&[m, 2 * k], 3).slice(1, 0..2 * k, 2).unwrap();
            let b = uneven(&[2 * n, 2 * k], 4);
            let b = b.slice(1, 1..2 * k, 2).unwrap().slice(0, 0..2 * n, 2).unwrap();
            let b = b.transpose(0, 1).unwrap();
            let expected = reference::matmul(&a, &b);
            for level in Level::available() {
                assert_close(level, &matmul_on(level, &a, &b).unwrap(), &expected, k);
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        for (m, k, n) in [(700, 300, 200), (50, 900, 600)] {
            let (a, b) = (uneven(&[m, k], 5), uneven(&[k, n], 6));
            let one = with_threads(1, || matmul(&a, &b).unwrap());
            let three = with_threads(3, || matmul(&a, &b).unwrap());
            assert_eq!(one.to_vec(), three.to_vec());
        }
    }

    /// A row's results are the same bits whatever rows are multiplied with it, and wherever it lies.
    #[test]
    fn a_product_is_its_rows() {
        for (k, n) in [(40, 20), (513, 70), (1300, 1000), (1024, 600), (2100, 33)] {
            let (a, b) = (uneven(&[200, k], 7), uneven(&[k, n], 8));
            for level in Level::available() {
                let whole = matmul_on(level, &a, &b).unwrap();
                for (first, count) in [(0, 1), (3, 64), (190, 10)] {
                    let rows = |x: &Tensor<f32>| x.slice(0, first..first + count, 1).unwrap();
                    let strided = rows(&a).transpose(0, 1).unwrap().contiguous();
                    let expected = rows(&whole).to_vec();
                    for a in [rows(&a), strided.transpose(0, 1).unwrap()] {
                        assert_eq!(
                            matmul_on(level, &a, &b).unwrap().to_vec(),
                            expected,
                            "{level:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn empty_and_unequal_operands() {
        let empty = matmul(&Tensor::zeros(&[3, 0]), &Tensor::zeros(&[0, 2])).unwrap();
        assert_eq!(empty.to_vec(), [0.0; 6]);
        assert!(matmul(&Tensor::zeros(&[0, 3]), &Tensor::zeros(&[3, 2])).unwrap().is_empty());
        let error = matmul(&Tensor::zeros(&[3, 4]), &Tensor::zeros(&[3, 2])).unwrap_err();
        assert_eq!(error.to_string(), "matmul: shapes [3, 4] and [3, 2] do not fit together");
    }
}
