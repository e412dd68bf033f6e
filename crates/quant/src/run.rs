use std::sync::atomic::{AtomicU64, Ordering};

use ottava_tensor::conv::int8::Algorithm;
use ottava_tensor::{Level, Tensor};

use crate::instr::{Elements, ValueType};
use crate::kernels;
use crate::plan::{ALIGN, Plan, Use};
use crate::step::Step;
use crate::{Error, Instr, Node, Program, QTensor, Result, ValueId};

/// How a [`Program`] is made ready to run. No choice changes a result.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The instruction set.
    pub level: Level,
    /// Whether an addition behind a convolution is done on the convolution's sums, saving a pass. The
    /// convolution's own codes are then never in memory, and not traced.
    pub fuse: bool,
    /// How convolutions are computed.
    pub algorithm: Algorithm,
}

impl Default for Options {
    /// The level of the environment, fused, algorithms chosen by shape.
    fn default() -> Self {
        Self { level: Level::current(), fuse: true, algorithm: Algorithm::Auto }
    }
}

/// A [`Program`] ready to run: weights packed for an instruction set, steps fused.
///
/// Running needs `&self` only; each thread brings a [`Workspace`] of its own.
pub struct Engine {
    /// Tells workspaces whose plan they hold.
    id: u64,
    level: Level,
    steps: Vec<Step>,
    uses: Vec<Use>,
    values: Vec<ValueType>,
    output: usize,
}

/// The memory that running needs: the arena with every value, and room for the kernels. It is planned
/// on the first run of an engine on a batch size; later ones of the same size allocate nothing.
#[derive(Default)]
pub struct Workspace {
    plan: Option<Planned>,
    arena: Vec<u8>,
    scratch: Vec<u8>,
}

struct Planned {
    engine: u64,
    batch: usize,
    plan: Plan,
}

/// What a node made, as [`Engine::run_traced`] shows it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Codes and their grid.
    Codes(QTensor),
    /// Floats.
    Float(Tensor<f32>),
}

impl Value {
    /// The codes; `None` for floats.
    pub fn codes(&self) -> Option<&QTensor> {
        match self {
            Self::Codes(codes) => Some(codes),
            Self::Float(_) => None,
        }
    }
}

impl Program {
    /// Runs the program once, nothing fused, showing `see` every node and what it made; the result
    /// as [`Engine::run`] has it. For a comparison with another evaluation of the same network.
    ///
    /// # Errors
    /// As [`Engine::with_options`] and [`Engine::run`].
    pub fn run_traced(
        &self,
        input: &Tensor<f32>,
        mut see: impl FnMut(&Node, &Value),
    ) -> Result<Tensor<f32>> {
        let engine = Engine::with_options(self, Options { fuse: false, ..Options::default() })?;
        engine.run_traced(input, &mut Workspace::new(), |node, value| {
            see(&self.nodes()[node], value);
        })
    }
}

impl Engine {
    /// Packs a program for this machine's best instruction set.
    ///
    /// # Errors
    /// [`Error::Node`] if a layer is beyond what the kernels can do exactly.
    pub fn new(program: &Program) -> Result<Self> {
        Self::with_options(program, Options::default())
    }

    /// Packs a program.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(program: &Program, options: Options) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let fused = if options.fuse { fusible(program) } else { vec![] };
        let mut steps = Vec::with_capacity(program.nodes().len());
        for index in 0..program.nodes().len() {
            // A fused layer runs where its addition stands: all it reads is there by then.
            if fused.contains(&Some(index)) {
                continue;
            }
            let step = Step::new(program, index, &options)?;
            steps.push(match fused.get(index).copied().flatten() {
                Some(layer) => Step::new(program, layer, &options)?.with_add(step),
                None => step,
            });
        }
        let uses = steps
            .iter()
            .map(|step| Use {
                inputs: step.inputs.clone(),
                output: step.output,
                sharing: step.sharing(),
            })
            .collect();
        let nodes = program.nodes().len();
        Ok(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            level: options.level,
            steps,
            uses,
            values: (0..=nodes).map(|value| program.value(ValueId(value)).clone()).collect(),
            output: program.output().0,
        })
    }

    /// The instruction set it was packed for.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The shape of one input image.
    pub fn input_shape(&self) -> &[usize] {
        &self.values[0].shape
    }

    /// The shape of the result for one image.
    pub fn output_shape(&self) -> &[usize] {
        &self.values[self.output].shape
    }

    /// Bytes a workspace holds for a batch, weights not included.
    ///
    /// # Errors
    /// [`Error::Batch`] if they overflow.
    pub fn workspace_bytes(&self, batch: usize) -> Result<usize> {
        Ok(self.plan(batch)?.arena + self.scratch_len(batch))
    }

    /// Runs the program on `f32` images `[n, c, h, w]` (or vectors `[n, k]`) in any layout; the
    /// result as `f32`, batch first.
    ///
    /// # Errors
    /// [`Error::Input`] if the shape is another than the program's, [`Error::Batch`] if there is no
    /// memory for a batch of that size.
    pub fn run(&self, input: &Tensor<f32>, workspace: &mut Workspace) -> Result<Tensor<f32>> {
        self.execute(input, workspace, None)?;
        Ok(self.result(input.shape()[0], workspace))
    }

    /// [`run`](Self::run) into a slice, which allocates nothing after the first run on a batch size
    /// (on one thread: a thread pool may).
    ///
    /// # Errors
    /// As [`run`](Self::run); [`ottava_tensor::Error::Length`] if `output` has another length.
    pub fn run_into(
        &self,
        input: &Tensor<f32>,
        output: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.execute(input, workspace, None)?;
        let batch = input.shape()[0];
        if output.len() != batch * self.output_shape().iter().product::<usize>() {
            let shape = self.batched(self.output, batch);
            return Err(ottava_tensor::Error::Length { shape, elements: output.len() }.into());
        }
        self.copy_result(output, batch, workspace);
        Ok(())
    }

    /// [`run`](Self::run), showing `see` what each node of the program made, by the node's index. A
    /// convolution fused with its addition is not seen: prepare with `fuse: false` to see all.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_traced(
        &self,
        input: &Tensor<f32>,
        workspace: &mut Workspace,
        mut see: impl FnMut(usize, &Value),
    ) -> Result<Tensor<f32>> {
        self.execute(input, workspace, Some(&mut see))?;
        Ok(self.result(input.shape()[0], workspace))
    }

    fn execute(
        &self,
        input: &Tensor<f32>,
        workspace: &mut Workspace,
        mut see: Option<See<'_>>,
    ) -> Result<()> {
        let batch = match input.shape() {
            [batch, image @ ..] if image == self.input_shape() => *batch,
            shape => {
                let expected = self.input_shape().to_vec();
                return Err(Error::Input { expected, shape: shape.to_vec() });
            }
        };
        if batch == 0 {
            return Ok(());
        }
        workspace.plan_for(self, batch)?;
        let Workspace { plan: Some(Planned { plan, .. }), arena, scratch } = workspace else {
            unreachable!("planned in the line above");
        };
        let (arena, scratch) = (aligned(arena), aligned(scratch));
        for step in &self.steps {
            step.run(self.level, input, batch, &plan.places, arena, scratch);
            if let Some(see) = &mut see {
                let bytes = &arena[plan.places[step.output].clone()];
                see(step.output - 1, &self.show(step.output, batch, bytes));
            }
        }
        Ok(())
    }

    fn plan(&self, batch: usize) -> Result<Plan> {
        let bytes: Vec<usize> = self.values.iter().map(ValueType::bytes).collect();
        Plan::new(&self.uses, &bytes, self.output, batch)
    }

    fn scratch_len(&self, batch: usize) -> usize {
        self.steps.iter().map(|step| step.scratch_len(batch)).max().unwrap_or(0)
    }

    fn batched(&self, value: usize, batch: usize) -> Vec<usize> {
        [&[batch], self.values[value].shape.as_slice()].concat()
    }

    /// The output of the last run on this workspace, as a tensor.
    fn result(&self, batch: usize, workspace: &mut Workspace) -> Tensor<f32> {
        let mut output = Tensor::zeros(&self.batched(self.output, batch));
        self.copy_result(output.data_mut(), batch, workspace);
        output
    }

    fn copy_result(&self, output: &mut [f32], batch: usize, workspace: &mut Workspace) {
        let Some(Planned { plan, .. }) = workspace.plan.as_ref().filter(|_| batch > 0) else {
            return;
        };
        let bytes = &aligned(&mut workspace.arena)[plan.places[self.output].clone()];
        self.read(self.output, bytes, output);
    }

    /// A value's elements as `f32`, in logical order.
    fn read(&self, value: usize, bytes: &[u8], output: &mut [f32]) {
        let shape = self.values[value].image();
        match self.values[value].elements {
            Elements::Codes(grid) => kernels::dequantize(bytes, shape, grid, output),
            Elements::Float => {
                kernels::to_logical_order(bytemuck::cast_slice(bytes), shape, output, |x: f32| x);
            }
        }
    }

    fn show(&self, value: usize, batch: usize, bytes: &[u8]) -> Value {
        let shape = self.batched(value, batch);
        match (self.values[value].elements, shape[..].try_into()) {
            (Elements::Codes(grid), image) => {
                let codes = match image {
                    Ok(image) => Tensor::from_nhwc(image, bytes),
                    Err(_) => Tensor::new(&shape, bytes),
                };
                Value::Codes(QTensor::new(codes.expect("as many codes as planned"), grid))
            }
            (Elements::Float, _) => {
                let mut floats = Tensor::zeros(&shape);
                self.read(value, bytes, floats.data_mut());
                Value::Float(floats)
            }
        }
    }
}

impl Workspace {
    /// Memory for nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn plan_for(&mut self, engine: &Engine, batch: usize) -> Result<()> {
        if matches!(&self.plan, Some(p) if (p.engine, p.batch) == (engine.id, batch)) {
            return Ok(());
        }
        self.plan = None;
        let plan = engine.plan(batch)?;
        grow(&mut self.arena, plan.arena, batch)?;
        grow(&mut self.scratch, engine.scratch_len(batch), batch)?;
        self.plan = Some(Planned { engine: engine.id, batch, plan });
        Ok(())
    }
}

/// Makes room for `len` aligned bytes.
fn grow(bytes: &mut Vec<u8>, len: usize, batch: usize) -> Result<()> {
    let len = len + ALIGN;
    if bytes.len() < len {
        bytes.clear();
        bytes.try_reserve_exact(len).map_err(|_| Error::Batch { batch })?;
        bytes.resize(len, 0);
    }
    Ok(())
}

/// The bytes from the first aligned one on.
fn aligned(bytes: &mut [u8]) -> &mut [u8] {
    let skip = bytes.as_ptr().align_offset(ALIGN);
    &mut bytes[skip..]
}

/// What is shown each node's index and value.
type See<'a> = &'a mut dyn FnMut(usize, &Value);

/// For each node that adds to a layer's result nobody else reads: that layer's node.
///
/// Only a layer that is the *first* operand is fused: in `f32`, `(a + fixed) + b` rounds
/// differently from `(b + fixed) + a`.
fn fusible(program: &Program) -> Vec<Option<usize>> {
    let nodes = program.nodes();
    let mut readers = vec![0; nodes.len() + 1];
    nodes.iter().flat_map(|node| &node.inputs).for_each(|input| readers[input.0] += 1);
    readers[program.output().0] += 1;
    nodes
        .iter()
        .map(|node| {
            let first = node.inputs[0];
            let layer = first.node().filter(|&layer| nodes[layer].instr.layer().is_some());
            layer.filter(|_| matches!(node.instr, Instr::Add { .. }) && readers[first.0] == 1)
        })
        .collect()
}
