use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use ottava_tensor::Tensor;

/// Who moves a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The optimizer, by gradients.
    Param,
    /// The forward pass: running statistics, observed ranges.
    Buffer,
}

/// A tensor that outlives a step: a parameter or a buffer, shared by everybody who clones it.
///
/// A module, the graph traced from it and the optimizer hold the same leaves.
#[derive(Clone)]
pub struct Leaf(Arc<Cell>);

struct Cell {
    kind: Kind,
    value: RwLock<Tensor<f32>>,
}

impl Leaf {
    /// A parameter.
    pub fn param(value: Tensor<f32>) -> Self {
        Self::new(Kind::Param, value)
    }

    /// A buffer.
    pub fn buffer(value: Tensor<f32>) -> Self {
        Self::new(Kind::Buffer, value)
    }

    /// A leaf of a kind.
    pub fn new(kind: Kind, value: Tensor<f32>) -> Self {
        Self(Arc::new(Cell { kind, value: RwLock::new(value) }))
    }

    /// Who moves it.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The value now; shares its memory.
    pub fn get(&self) -> Tensor<f32> {
        self.0.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the value.
    pub fn set(&self, value: Tensor<f32>) {
        *self.0.value.write().unwrap_or_else(PoisonError::into_inner) = value;
    }

    /// Changes the value, in place if nobody else holds its memory.
    pub fn update(&self, change: impl FnOnce(&mut Tensor<f32>)) {
        change(&mut self.0.value.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Changes the values of different leaves at once, each in place if nobody else holds its memory.
    ///
    /// ```
    /// use ottava_autograd::Leaf;
    /// use ottava_tensor::Tensor;
    ///
    /// let leaves = [1.0, 2.0].map(|x| Leaf::param(Tensor::scalar(x)));
    /// Leaf::update_all(&leaves, |values| values.iter_mut().for_each(|value| value.data_mut()[0] += 1.0));
    /// assert_eq!(leaves.map(|leaf| leaf.get().item()), [Ok(2.0), Ok(3.0)]);
    /// ```
    ///
    /// Nobody reads a leaf meanwhile: `change` may work on threads, but what else runs on their pool must not need
    /// these leaves.
    ///
    /// # Panics
    /// If one leaf is among them twice.
    pub fn update_all(leaves: &[Self], change: impl FnOnce(&mut [&mut Tensor<f32>])) {
        // In one order, whatever the caller's: two threads that hold what the other needs would wait for ever.
        let mut order: Vec<_> = leaves.iter().enumerate().collect();
        order.sort_unstable_by_key(|(_, leaf)| Arc::as_ptr(&leaf.0));
        assert!(order.windows(2).all(|pair| !pair[0].1.is(pair[1].1)), "each leaf once");
        let mut locked: Vec<_> = order
            .into_iter()
            .map(|(i, leaf)| (i, leaf.0.value.write().unwrap_or_else(PoisonError::into_inner)))
            .collect();
        locked.sort_unstable_by_key(|&(i, _)| i);
        let mut values: Vec<&mut Tensor<f32>> =
            locked.iter_mut().map(|(_, value)| &mut **value).collect();
        change(&mut values);
    }

    /// Whether both are the same leaf, not merely equal.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A leaf of its own with the same kind and value.
    pub fn detach(&self) -> Self {
        Self::new(self.kind(), self.get())
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Leaf").field(&self.kind()).field(&self.get()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_update_the_same_leaves_in_any_order_do_not_wait_for_each_other() {
        let [a, b] = [0.0, 10.0].map(|x| Leaf::param(Tensor::scalar(x)));
        let orders = [[a.clone(), b.clone()], [b.clone(), a.clone()]];
        std::thread::scope(|scope| {
            for leaves in &orders {
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        Leaf::update_all(leaves, |values| {
                            // In the caller's order.
                            let first = values[0].data_mut()[0];
                            values[0].data_mut()[0] = first + 1.0;
                        });
                    }
                });
            }
        });
        let values = [a, b].map(|leaf| leaf.get().item().unwrap());
        assert_eq!(values, [20_000.0, 20_010.0]);
    }
}
