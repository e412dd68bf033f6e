use ottava_autograd::{Graph, Kind, Leaf, Result as TapeResult, Var};
use ottava_tensor::Tensor;

use crate::{Module, Result, StateMismatch, state_dict};

/// What can be trained and evaluated: a [`Module`], or the [`Graph`] that a module, a file or a pass
/// gave. One loop serves float and quantization-aware training.
pub trait Network {
    /// The output for `x`, on the tape `x` is on.
    ///
    /// # Errors
    /// What an operator refuses.
    fn run<'t>(&self, x: Var<'t>) -> TapeResult<Var<'t>>;

    /// Every parameter and buffer with its full name, in the order of PyTorch's state dict.
    fn leaves(&self) -> Vec<(String, Leaf)>;

    /// What the optimizer moves.
    fn parameters(&self) -> Vec<(String, Leaf)> {
        self.leaves().into_iter().filter(|(_, leaf)| leaf.kind() == Kind::Param).collect()
    }

    /// How many numbers the optimizer moves.
    fn parameter_count(&self) -> usize {
        self.parameters().iter().map(|(_, leaf)| leaf.get().len()).sum()
    }

    /// The value of every parameter and buffer, sharing its memory until one of both changes.
    fn state_dict(&self) -> Vec<(String, Tensor<f32>)> {
        self.leaves().into_iter().map(|(name, leaf)| (name, leaf.get())).collect()
    }

    /// Sets every parameter and buffer. PyTorch's `num_batches_tracked` counters are ignored, and so is
    /// what a training wrapper put before all names (`module.`, `_orig_mod.`, `model.`).
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State), naming everything that is missing, unexpected or of another shape, with the
    /// nearest name on the other side; then nothing has changed.
    fn load_state_dict(&self, state: Vec<(String, Tensor<f32>)>) -> Result<()> {
        state_dict::load("network", self.leaves(), state)
    }

    /// Sets the parameters and buffers whose name and shape fit, and returns what did not: to start
    /// from a network trained for other classes.
    fn load_matching(&self, state: Vec<(String, Tensor<f32>)>) -> StateMismatch {
        state_dict::compare(self.leaves(), state).apply()
    }
}

impl<M: Module + ?Sized> Network for M {
    fn run<'t>(&self, x: Var<'t>) -> TapeResult<Var<'t>> {
        self.forward(x)
    }

    fn leaves(&self) -> Vec<(String, Leaf)> {
        let mut leaves = Vec::new();
        self.visit("", &mut |name, leaf| leaves.push((name, leaf.clone())));
        leaves
    }
}

impl Network for Graph {
    fn run<'t>(&self, x: Var<'t>) -> TapeResult<Var<'t>> {
        Graph::run(self, x)
    }

    fn leaves(&self) -> Vec<(String, Leaf)> {
        Graph::leaves(self)
    }
}

/// Records what a module does with `example` (`[n, c, h, w]`) as a graph that shares its leaves.
///
/// # Errors
/// What an operator refuses; a forward pass that depends on the batch size or on values; a tensor
/// that the module uses and does not name.
pub fn trace(module: &(impl Module + ?Sized), example: &Tensor<f32>) -> Result<Graph> {
    Ok(ottava_autograd::trace(&module.leaves(), example, |x| module.forward(x))?)
}
