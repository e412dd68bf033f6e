use ottava_autograd::{Leaf, Result, Var};

/// What has named parameters and buffers.
///
/// Implemented by [`module!`](crate::module!) from the names of a struct's fields, in their order;
/// by a [`Leaf`], which is one; and by what holds others: `Option`, `Box`, `Vec` (its elements are
/// named by their indices).
pub trait State {
    /// Calls `f` with the full name of each leaf, in the order of PyTorch's state dict; `prefix` is
    /// the name of the whole, empty for a network.
    fn visit(&self, prefix: &str, f: &mut dyn FnMut(String, &Leaf));
}

/// A part of a network: leaves with names, and a forward pass over them.
///
/// ```
/// use ottava_autograd::{Result, Var};
/// use ottava_nn::layers::{Conv2d, Linear};
/// use ottava_nn::{Module, Network as _, init};
/// use ottava_tensor::conv::ConvAttrs;
///
/// struct Tiny {
///     conv: Conv2d,
///     fc: Linear,
/// }
///
/// ottava_nn::module!(Tiny { conv, fc });
///
/// impl Module for Tiny {
///     fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
///         self.fc.forward(self.conv.forward(x)?.relu()?.global_avg_pool()?.flatten()?)
///     }
/// }
///
/// let rng = &mut init::rng(0);
/// let tiny = Tiny { conv: Conv2d::new([3, 8], 3, ConvAttrs::new(1, 1), rng), fc: Linear::new(8, 10, rng) };
/// let names: Vec<String> = tiny.leaves().into_iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["conv.weight", "fc.weight", "fc.bias"]);
/// ```
pub trait Module: State + Send + Sync {
    /// The output for `x`, on the tape `x` is on.
    ///
    /// # Errors
    /// What an operator refuses: shapes that do not fit, with the numbers.
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>>;
}

/// Implements [`State`](crate::State) for a struct from the names of its fields, in torchvision's
/// order: `module!(BasicBlock { conv1, bn1, conv2, bn2, downsample });`. Fields without leaves are
/// left out.
#[macro_export]
macro_rules! module {
    ($type:ty { $($field:ident),* $(,)? }) => {
        impl $crate::State for $type {
            fn visit(
                &self,
                prefix: &str,
                f: &mut dyn FnMut(::std::string::String, &$crate::__private::Leaf),
            ) {
                $($crate::State::visit(
                    &self.$field,
                    &$crate::__private::join(prefix, stringify!($field)),
                    f,
                );)*
                let _ = (prefix, f); // a module may have no leaves
            }
        }
    };
}

/// `prefix.name`, or `name` at the top.
pub fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

impl State for Leaf {
    fn visit(&self, prefix: &str, f: &mut dyn FnMut(String, &Leaf)) {
        f(prefix.to_owned(), self);
    }
}

impl<S: State> State for Option<S> {
    fn visit(&self, prefix: &str, f: &mut dyn FnMut(String, &Leaf)) {
        if let Some(state) = self {
            state.visit(prefix, f);
        }
    }
}

impl<S: State> State for Vec<S> {
    fn visit(&self, prefix: &str, f: &mut dyn FnMut(String, &Leaf)) {
        for (index, state) in self.iter().enumerate() {
            state.visit(&join(prefix, &index.to_string()), f);
        }
    }
}

impl<S: State + ?Sized> State for Box<S> {
    fn visit(&self, prefix: &str, f: &mut dyn FnMut(String, &Leaf)) {
        self.as_ref().visit(prefix, f);
    }
}

impl<M: Module + ?Sized> Module for Box<M> {
    fn forward<'t>(&self, x: Var<'t>) -> Result<Var<'t>> {
        self.as_ref().forward(x)
    }
}
