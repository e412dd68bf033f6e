use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use half::bf16;
use ottava_tensor::{Tensor, elementwise};

use crate::op::{Backward, Context, Op, Rule};
use crate::{Error, Leaf, Mode, Result, Saving, Value};

/// A record of operators in the order they ran.
///
/// Backward walks it in reverse: no sorting, no recursion, a fixed order of sums. Each operator's
/// closure is consumed as it runs, so that what it had saved is freed on the way.
///
/// ```
/// use ottava_autograd::{Leaf, Mode, Tape};
/// use ottava_tensor::{Tensor, elementwise};
///
/// let w = Leaf::param(Tensor::new(&[2], [3.0, -1.0])?);
/// let tape = Tape::new(Mode::TRAIN);
/// let loss = tape.leaf(&w).mul(tape.leaf(&w))?.sum()?;
/// let grads = loss.backward()?;
/// assert_eq!(grads.get(&w).unwrap().to_vec(), [6.0, -2.0]); // ∂Σw²/∂w = 2w
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Tape {
    nodes: RefCell<Vec<Node>>,
    mode: Mode,
    recording: bool,
    /// Whether what ran becomes a graph.
    traced: bool,
    saving: Saving,
    /// What ran when, if somebody wants to know.
    spans: Option<Spans>,
}

/// When an operator ran on a tape.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The operator's name, as [`Op::name`] spells it.
    pub op: &'static str,
    /// Whether it was its way back.
    pub backward: bool,
    /// The shape of its value.
    pub shape: Vec<usize>,
    /// When it began.
    pub start: Instant,
    /// How long it took.
    pub duration: Duration,
}

/// Where operators note when they ran, those of a tape within a tape too.
#[derive(Clone, Default)]
pub(crate) struct Spans(Arc<Mutex<Vec<Span>>>);

impl Spans {
    fn note(&self, span: Span) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(span);
    }

    fn take(&self) -> Vec<Span> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Node {
    origin: Origin,
    value: Option<Value>,
    backward: Option<Backward>,
    /// Whether a gradient may be asked for.
    needs: bool,
    /// The value as operators have saved it, if they did so in halves.
    half: Option<Tensor<bf16>>,
    /// Whether its rule is several operators, which note their times themselves.
    several: bool,
}

/// Where the value of a node came from.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    Input,
    Leaf(Leaf),
    Op(Op, Vec<usize>),
}

/// A value on a tape.
#[derive(Clone, Copy)]
pub struct Var<'t> {
    tape: &'t Tape,
    id: usize,
}

impl Tape {
    /// An empty tape that can go back.
    pub fn new(mode: Mode) -> Self {
        Self {
            nodes: RefCell::default(),
            mode,
            recording: true,
            traced: false,
            saving: Saving::default(),
            spans: None,
        }
    }

    /// An empty tape that cannot go back, and so saves nothing for it.
    pub fn no_grad(mode: Mode) -> Self {
        Self { recording: false, ..Self::new(mode) }
    }

    /// The same tape, from which a graph will be made.
    pub(crate) fn traced(self) -> Self {
        Self { traced: true, ..self }
    }

    pub(crate) fn is_traced(&self) -> bool {
        self.traced
    }

    /// The same tape, which keeps less for the way back.
    pub fn with_saving(self, saving: Saving) -> Self {
        Self { saving, ..self }
    }

    /// What is kept for the way back.
    pub fn saving(&self) -> Saving {
        self.saving
    }

    /// The same tape, which keeps the time of every operator, forward and back.
    pub fn with_spans(self) -> Self {
        Self { spans: Some(Spans::default()), ..self }
    }

    /// The same tape, whose operators note their times with those of another.
    pub(crate) fn with_spans_of(self, spans: Option<Spans>) -> Self {
        Self { spans, ..self }
    }

    /// What ran since the last call, in order; nothing without [`with_spans`](Self::with_spans).
    pub fn take_spans(&self) -> Vec<Span> {
        self.spans.as_ref().map(Spans::take).unwrap_or_default()
    }

    /// Keeps the time of something that began at `start`.
    fn note(&self, op: &'static str, backward: bool, shape: &[usize], start: Option<Instant>) {
        if let (Some(spans), Some(start)) = (&self.spans, start) {
            let (shape, duration) = (shape.to_vec(), start.elapsed());
            spans.note(Span { op, backward, shape, start, duration });
        }
    }

    /// Now, if anybody wants to know.
    fn now(&self) -> Option<Instant> {
        self.spans.is_some().then(Instant::now)
    }

    /// How operators behave.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// A value from outside; no gradient is kept for it.
    pub fn input(&self, value: impl Into<Value>) -> Var<'_> {
        self.push(Origin::Input, value.into(), None, false)
    }

    /// A value from outside whose gradient will be asked for ([`Gradients::of`]).
    pub fn variable(&self, value: impl Into<Value>) -> Var<'_> {
        self.push(Origin::Input, value.into(), None, self.recording)
    }

    /// A parameter or buffer. Parameters get gradients; buffers take what operators write to them.
    pub fn leaf(&self, leaf: &Leaf) -> Var<'_> {
        let needs = self.recording && leaf.kind() == crate::Kind::Param;
        self.push(Origin::Leaf(leaf.clone()), leaf.get().into(), None, needs)
    }

    /// Runs an operator.
    ///
    /// # Errors
    /// What the operator refuses.
    pub fn apply<'t>(&'t self, op: Op, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        self.apply_as(op.clone(), op.rule(), inputs)
    }

    /// Runs an operator by another rule than its own, which does more at once.
    pub(crate) fn apply_as<'t>(
        &'t self,
        op: Op,
        rule: &dyn Rule,
        inputs: &[Var<'t>],
    ) -> Result<Var<'t>> {
        if inputs.iter().any(|var| !std::ptr::eq(var.tape, self)) {
            let reason = "an input is a variable of another tape".into();
            return Err(Error::Op { op: op.name(), reason });
        }
        let ids: Vec<usize> = inputs.iter().map(|var| var.id).collect();
        let (values, needs) = {
            let nodes = self.nodes.borrow();
            let mut values = Vec::with_capacity(ids.len());
            for &id in &ids {
                values.push(nodes[id].value.clone().ok_or_else(|| Error::Op {
                    op: op.name(),
                    reason: "an input was released before it was used".into(),
                })?);
            }
            (values, ids.iter().map(|&id| nodes[id].needs).collect::<Vec<_>>())
        };
        let needs_any = needs.contains(&true);
        let mut context = Context::new(self.mode, needs);
        context.saving = self.saving;
        context.spans = self.spans.clone();
        if self.saving.half {
            let nodes = self.nodes.borrow();
            context.halves = ids.iter().map(|&id| nodes[id].half.clone()).collect();
        }
        let start = self.now();
        let output = rule.forward(&values, &mut context)?;
        let several = self.spans.is_some() && context.spans.is_none();
        self.note(op.name(), false, output.value.shape(), start.filter(|_| !several));
        for (input, value) in context.updates {
            if let Origin::Leaf(leaf) = &self.nodes.borrow()[ids[input]].origin {
                leaf.set(value);
            }
        }
        let mut nodes = self.nodes.borrow_mut();
        ids.iter().zip(context.halves).for_each(|(&id, half)| nodes[id].half = half);
        drop(nodes);
        let backward = if needs_any { output.backward } else { None };
        let var = self.push(Origin::Op(op, ids), output.value, backward, needs_any);
        self.nodes.borrow_mut()[var.id].several = several;
        Ok(var)
    }

    /// Forgets a value that nobody will use again; what backward needs, its operators have saved.
    pub(crate) fn release(&self, var: Var<'_>) {
        self.nodes.borrow_mut()[var.id].value = None;
    }

    /// Every node's origin, for tracing.
    pub(crate) fn origins(&self) -> Vec<Origin> {
        self.nodes.borrow().iter().map(|node| node.origin.clone()).collect()
    }

    fn push(
        &self,
        origin: Origin,
        value: Value,
        backward: Option<Backward>,
        needs: bool,
    ) -> Var<'_> {
        let mut nodes = self.nodes.borrow_mut();
        let value = Some(value);
        nodes.push(Node { origin, value, backward, needs, half: None, several: false });
        Var { tape: self, id: nodes.len() - 1 }
    }
}

impl<'t> Var<'t> {
    /// The tape it is on.
    pub fn tape(self) -> &'t Tape {
        self.tape
    }

    pub(crate) fn id(self) -> usize {
        self.id
    }

    /// The value.
    ///
    /// # Panics
    /// If the graph that ran it has already released it, which only happens to inner nodes.
    pub fn value(self) -> Value {
        self.tape.nodes.borrow()[self.id].value.clone().expect("the value is still held")
    }

    /// The value as floats, dequantized if it is codes.
    pub fn tensor(self) -> Tensor<f32> {
        self.value().float()
    }

    /// The size of each axis.
    pub fn shape(self) -> Vec<usize> {
        self.value().shape().to_vec()
    }

    /// Goes back from this scalar: the gradient of every parameter and variable it depends on.
    /// What operators had saved is consumed: a second call finds nothing.
    ///
    /// # Errors
    /// [`Error::Op`] if this is not a scalar.
    pub fn backward(self) -> Result<Gradients> {
        let elements = self.value().shape().iter().product::<usize>();
        if elements != 1 {
            return Err(Error::Op {
                op: "backward",
                reason: format!("starts from a scalar, but the value has {elements} elements"),
            });
        }
        Ok(self.backward_with(Tensor::full(&self.shape(), 1.0)))
    }

    /// Goes back from this value with the gradient `seed`, which has its shape.
    pub fn backward_with(self, seed: Tensor<f32>) -> Gradients {
        let mut nodes = self.tape.nodes.borrow_mut();
        let mut pending: Vec<Option<Tensor<f32>>> = vec![None; self.id + 1];
        pending[self.id] = Some(seed);
        let mut found = Gradients { leaves: Vec::new(), inputs: Vec::new() };
        for id in (0..=self.id).rev() {
            // Who reads this value has gone back already.
            nodes[id].half = None;
            let Some(grad) = pending[id].take() else { continue };
            let needs = |input: usize, nodes: &[Node]| nodes[input].needs;
            match &nodes[id].origin {
                Origin::Input if nodes[id].needs => found.inputs.push((id, grad)),
                Origin::Input => {}
                Origin::Leaf(leaf) => found.add(leaf.clone(), grad),
                Origin::Op(op, inputs) => {
                    let (op, inputs) = (op.name(), inputs.clone());
                    let wanted: Vec<bool> = inputs.iter().map(|&i| needs(i, &nodes)).collect();
                    let Some(backward) = nodes[id].backward.take() else { continue };
                    let (shape, start) = (grad.shape().to_vec(), self.tape.now());
                    let grads = backward(grad, &wanted);
                    self.tape.note(op, true, &shape, start.filter(|_| !nodes[id].several));
                    for ((input, wanted), grad) in inputs.into_iter().zip(&wanted).zip(grads) {
                        if let Some(grad) = grad.filter(|_| *wanted) {
                            accumulate(&mut pending[input], grad);
                        }
                    }
                }
            }
        }
        found
    }
}

fn accumulate(sum: &mut Option<Tensor<f32>>, grad: Tensor<f32>) {
    *sum = Some(match sum.take() {
        None => grad,
        // In place, unless the sum is somebody else's gradient too.
        Some(mut sum) if !sum.is_shared() && sum.strides() == grad.strides() => {
            elementwise::axpy(1.0, &grad, &mut sum).expect("gradients of one value");
            sum
        }
        Some(sum) => elementwise::add(&sum, &grad).expect("gradients of one value"),
    });
}

impl fmt::Debug for Var<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Var({}, {:?})", self.id, self.value())
    }
}

/// What a walk back found.
#[derive(Debug)]
pub struct Gradients {
    leaves: Vec<(Leaf, Tensor<f32>)>,
    inputs: Vec<(usize, Tensor<f32>)>,
}

impl Gradients {
    /// The gradient of a parameter; `None` if the start does not depend on it.
    pub fn get(&self, leaf: &Leaf) -> Option<&Tensor<f32>> {
        self.leaves.iter().find(|(known, _)| known.is(leaf)).map(|(_, grad)| grad)
    }

    /// The gradient of a value made with [`Tape::variable`].
    pub fn of(&self, var: Var<'_>) -> Option<&Tensor<f32>> {
        self.inputs.iter().find(|(id, _)| *id == var.id()).map(|(_, grad)| grad)
    }

    /// The length of all parameters' gradients as one vector: `√Σ g²`, summed in `f64`.
    pub fn norm(&self) -> f32 {
        let square =
            |grad: &Tensor<f32>| grad.iter().map(|g| f64::from(g) * f64::from(g)).sum::<f64>();
        self.leaves.iter().map(|(_, grad)| square(grad)).sum::<f64>().sqrt() as f32
    }

    /// Multiplies every parameter's gradient.
    pub fn scale(&mut self, factor: f32) {
        for (_, grad) in &mut self.leaves {
            grad.data_mut().iter_mut().for_each(|g| *g *= factor);
        }
    }

    fn add(&mut self, leaf: Leaf, grad: Tensor<f32>) {
        match self.leaves.iter_mut().find(|(known, _)| known.is(&leaf)) {
            None => self.leaves.push((leaf, grad)),
            Some((_, sum)) => {
                *sum = sum.zip_map("gradient", &grad, |a, b| a + b).expect("gradients of one leaf");
            }
        }
    }
}
