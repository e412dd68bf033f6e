use ottava_tensor::Tensor;

use crate::{Error, Result};

/// How well a network did on images seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Images.
    pub images: usize,
    /// Images whose class had the largest logit.
    pub correct1: usize,
    /// Images whose class had one of the five largest logits.
    pub correct5: usize,
    /// The sum of the images' losses.
    pub loss_sum: f64,
}

impl Metrics {
    /// Takes in a batch: its logits `[n, classes]`, its classes, and the mean of its losses.
    ///
    /// Of equal logits the first counts as the larger, as in
    /// [`argmax_rows`](ottava_tensor::Tensor::argmax_rows); a logit that is NaN is never right.
    ///
    /// # Errors
    /// [`Error::Autograd`] if the logits are not a matrix; [`Error::Config`] if there are not as many
    /// rows as targets, or a target is none of the classes.
    pub fn add(&mut self, logits: &Tensor<f32>, targets: &[usize], loss: f32) -> Result<()> {
        let [rows, classes] = logits.dims("metrics")?;
        let wrong = targets.iter().find(|&&target| target >= classes);
        if rows != targets.len() || wrong.is_some() {
            let reason = match wrong {
                Some(target) => format!("class {target} is none of the network's {classes}"),
                None => format!("{rows} rows of logits for {} targets", targets.len()),
            };
            return Err(Error::Config { reason });
        }
        for (row, &target) in logits.to_vec().chunks(classes.max(1)).zip(targets) {
            let rank = rank(row, target);
            self.correct1 += usize::from(rank < 1);
            self.correct5 += usize::from(rank < 5);
        }
        self.images += rows;
        self.loss_sum += f64::from(loss) * rows as f64;
        Ok(())
    }

    /// The fraction of images whose class had the largest logit; NaN without images.
    pub fn top1(&self) -> f64 {
        self.correct1 as f64 / self.images as f64
    }

    /// The fraction of images whose class had one of the five largest logits; NaN without images.
    pub fn top5(&self) -> f64 {
        self.correct5 as f64 / self.images as f64
    }

    /// The mean loss; NaN without images.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.images as f64
    }
}

/// How many elements come before `row[target]` when sorted from the largest.
fn rank(row: &[f32], target: usize) -> usize {
    let own = row[target];
    if own.is_nan() {
        return usize::MAX;
    }
    row.iter().enumerate().filter(|&(i, &x)| x > own || (x == own && i < target)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_first_and_the_first_five() {
        let row = [0.5, 3.0, 1.0, 1.0, -2.0, 0.0, f32::NAN];
        let logits = Tensor::new(&[4, 7], row.repeat(4)).unwrap();
        let mut metrics = Metrics::default();
        // Class 1 is first, 3 third (after its equal, 2), 4 sixth, 6 NaN.
        metrics.add(&logits, &[1, 3, 4, 6], 0.5).unwrap();
        assert_eq!((metrics.correct1, metrics.correct5, metrics.images), (1, 2, 4));
        assert_eq!((metrics.top1(), metrics.top5(), metrics.loss()), (0.25, 0.5, 0.5));
    }

    #[test]
    fn fewer_than_five_classes_are_all_among_the_first_five() {
        let mut metrics = Metrics::default();
        metrics.add(&Tensor::new(&[1, 2], [1.0, 2.0]).unwrap(), &[0], 1.0).unwrap();
        assert_eq!((metrics.correct1, metrics.correct5), (0, 1));
    }

    #[test]
    fn targets_that_do_not_fit_are_refused() {
        let logits = Tensor::new(&[1, 2], [1.0, 2.0]).unwrap();
        assert!(Metrics::default().add(&logits, &[2], 1.0).is_err());
        assert!(Metrics::default().add(&logits, &[0, 1], 1.0).is_err());
    }
}
