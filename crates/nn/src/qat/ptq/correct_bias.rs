use std::fmt;

use ottava_autograd::{Error, Graph};
use ottava_tensor::Tensor;

use super::inputs::{both, images, sites, up_to};
use crate::Result;

/// What [`correct_bias`] did to a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Corrected {
    /// The layer's name.
    pub layer: String,
    /// The largest mean error of an output channel before, in units of the output.
    pub largest: f64,
}

/// Takes the mean error of every layer's result out of its bias:
/// `b −= E[W_q x_q + b_q] − E[W x + b]`, per output channel, over all images and pixels, before the
/// ReLU. Layers are corrected in order, each with what the corrected layers before it pass on.
///
/// `graph` is prepared and calibrated, and as it is in float is what it is compared with: correct it once.
/// `batches` is called once a layer and gives the same images `[n, c, h,
/// w]` each time. A BatchNorm's bias serves as the layer's. What is left of the mean error on these
/// images is the rounding of the bias: half of `s_x · s_w`.
///
/// # Errors
/// [`Error::Node`] naming a layer that has no bias ([`fold_norms`](super::fold_norms) gives it one) or
/// whose observer saw nothing; [`crate::Error::Data`].
///
/// # Source
/// Nagel et al. 2019, section 4.2 (arXiv:1906.04721), the empirical form.
pub fn correct_bias<I, E>(graph: &Graph, mut batches: impl FnMut() -> I) -> Result<Vec<Corrected>>
where
    I: IntoIterator<Item = std::result::Result<Tensor<f32>, E>>,
    E: fmt::Display,
{
    let reference = graph.detach();
    let mut report = Vec::new();
    for site in sites(graph) {
        // Behind the weight come the bias, then the BatchNorm's weight and bias.
        let at = match (site.layer.bias, site.layer.norm) {
            (_, Some(_)) => 2 + usize::from(site.layer.bias),
            (true, None) => 1,
            (false, None) => {
                let reason = "has no bias to correct; fold_norms gives every layer one".into();
                return Err(Error::Op { op: "correct_bias", reason }.at(site.name).into());
            }
        };
        let bias = site.leaves(graph)[at].clone();
        let (reference, rounded) =
            (up_to(&reference, site.inputs[0])?, up_to(graph, site.inputs[0])?);
        let mut sums = vec![0.0f64; bias.get().len()];
        let mut count = 0usize;
        for batch in images(batches()) {
            let (exact, x, grid) = both(&reference, &rounded, batch?)?;
            let [with_rounding, without] = site.parameters(graph, grid)?;
            for (values, sign) in
                [(site.apply(&x, &with_rounding)?, 1.0), (site.apply(&exact, &without)?, -1.0)]
            {
                let channels = sums.len();
                count += if sign > 0.0 { values.len() / channels.max(1) } else { 0 };
                let inner: usize = values.shape().iter().skip(2).product();
                for (i, value) in values.iter().enumerate() {
                    sums[i / inner % channels] += sign * f64::from(value);
                }
            }
        }
        let errors: Vec<f64> = sums.iter().map(|sum| sum / count.max(1) as f64).collect();
        let corrected: Vec<f32> =
            bias.get().iter().zip(&errors).map(|(b, e)| (f64::from(b) - e) as f32).collect();
        let largest = errors.iter().fold(0.0f64, |most, e| most.max(e.abs()));
        bias.set(Tensor::new(&[corrected.len()], corrected).map_err(Error::from)?);
        report.push(Corrected { layer: site.name.to_owned(), largest });
    }
    Ok(report)
}
