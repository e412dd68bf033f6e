//! Model files: ours, float or integer, and other people's weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ottava::autograd::Graph;
use ottava::data::Preprocess;
use ottava::interop::{self, StateDict};
use ottava::nn::models::{Architecture, ModelConfig};
use ottava::nn::{self, Module, Network as _};
use ottava::quant::{Container, Program};
use ottava::tensor::Tensor;

/// A network from a file.
pub enum Model {
    Float(FloatModel),
    Integer(Program),
}

/// A float network and what its file says of it.
pub struct FloatModel {
    pub architecture: Architecture,
    pub config: ModelConfig,
    /// The shape of an image, if the file says it.
    pub input: Option<[usize; 3]>,
    pub classes: Vec<String>,
    pub preprocess: Option<Preprocess>,
    pub network: Box<dyn Module>,
}

impl FloatModel {
    /// A network with the weights of a seed.
    pub fn new(
        architecture: Architecture,
        config: ModelConfig,
        input: [usize; 3],
        classes: &[String],
        preprocess: &Preprocess,
    ) -> Result<Self> {
        Ok(Self {
            architecture,
            config,
            input: Some(input),
            classes: classes.to_vec(),
            preprocess: Some(preprocess.clone()),
            network: architecture.build(&config)?,
        })
    }

    /// The shape of an image: the file's, or the size the architecture was designed for.
    pub fn input_shape(&self, size: Option<usize>) -> [usize; 3] {
        let designed = self.architecture.input_size();
        match (size, self.input) {
            (Some(size), _) => [self.config.in_channels, size, size],
            (None, Some(shape)) => shape,
            (None, None) => [self.config.in_channels, designed, designed],
        }
    }

    /// The network as a graph for images of a shape.
    pub fn trace(&self, [c, h, w]: [usize; 3]) -> Result<Graph> {
        Ok(nn::trace(&*self.network, &Tensor::zeros(&[1, c, h, w]))?)
    }

    /// Names and values for a file that holds this network, float or quantized.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::from([
            ("kind".to_owned(), "float".to_owned()),
            ("architecture".to_owned(), self.architecture.to_string()),
            ("classes".to_owned(), self.config.classes.to_string()),
            ("in_channels".to_owned(), self.config.in_channels.to_string()),
        ]);
        if let Some([c, h, w]) = self.input {
            metadata.insert("input".into(), format!("{c}x{h}x{w}"));
        }
        if !self.classes.is_empty() {
            metadata.insert("class_names".into(), self.classes.join("\n"));
        }
        metadata.extend(self.preprocess.iter().flat_map(Preprocess::to_metadata));
        metadata
    }

    /// Writes the network as `.ottava`.
    pub fn save(&self, path: &Path) -> Result<()> {
        save_state(path, self.metadata(), self.network.state_dict())
    }
}

/// Writes named tensors under metadata.
pub fn save_state(
    path: &Path,
    metadata: BTreeMap<String, String>,
    state: Vec<(String, Tensor<f32>)>,
) -> Result<()> {
    let mut container = Container::default();
    container.metadata_mut().extend(metadata);
    for (name, tensor) in state {
        container.put(name, &tensor)?;
    }
    Ok(container.save(path)?)
}

/// The model of a file, or of a run directory: its `int8.ottava`, else its `best.ottava`.
pub fn load(path: &Path, named: Option<&str>) -> Result<Model> {
    let path = in_run(path, &["int8.ottava", "best.ottava"])?;
    if path.extension().is_some_and(|extension| extension == "ottava") {
        let container = Container::load(&path).with_context(|| format!("{}", path.display()))?;
        return match container.metadata().get("kind").map(String::as_str) {
            Some("float") => Ok(Model::Float(float_of(&path, &container)?)),
            Some("qat" | "checkpoint") => {
                bail!(
                    "{} is the state of a training run; name int8.ottava or best.ottava beside it",
                    path.display()
                )
            }
            _ => Ok(Model::Integer(
                Program::from_container(&container)
                    .with_context(|| format!("{}", path.display()))?,
            )),
        };
    }
    let state = interop::read_state_dict(&path)?;
    Ok(Model::Float(foreign(&path, &state, named)?))
}

/// The float model of a file, or of a run directory: its `best.ottava`.
pub fn load_float(path: &Path, named: Option<&str>) -> Result<FloatModel> {
    let path = in_run(path, &["best.ottava"])?;
    match load(&path, named)? {
        Model::Float(model) => Ok(model),
        Model::Integer(_) => {
            bail!("{} is an integer network; quantizing starts from a float one", path.display())
        }
    }
}

fn in_run(path: &Path, names: &[&str]) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let found = names.iter().map(|name| path.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("the run {} has no {}", path.display(), names.join(" or ")))
}

fn float_of(path: &Path, container: &Container) -> Result<FloatModel> {
    let metadata = container.metadata();
    let shown = path.display();
    let text = |key: &str| {
        metadata
            .get(key)
            .with_context(|| format!("{shown} does not say its {key}; was it written by `ottava`?"))
    };
    let number = |key: &str| -> Result<usize> {
        text(key)?.parse().with_context(|| format!("{shown}: {key} is no number"))
    };
    let architecture: Architecture = text("architecture")?.parse()?;
    let config = ModelConfig {
        classes: number("classes")?,
        in_channels: number("in_channels")?,
        ..ModelConfig::default()
    };
    let state: StateDict = container
        .tensors()
        .keys()
        .map(|name| Ok((name.clone(), container.get(name)?)))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .collect();
    let mut model = with_weights(path, architecture, config, &state)?;
    model.input = metadata.get("input").and_then(|text| {
        let sizes: Vec<usize> = text.split('x').filter_map(|size| size.parse().ok()).collect();
        sizes.try_into().ok()
    });
    model.classes = metadata
        .get("class_names")
        .map_or_else(Vec::new, |t| t.lines().map(str::to_owned).collect());
    model.preprocess = Preprocess::from_metadata(metadata)?;
    Ok(model)
}

/// A network of ours for a state dict: the one that is named, or the one whose names and shapes fit.
fn foreign(path: &Path, state: &StateDict, named: Option<&str>) -> Result<FloatModel> {
    let shown = path.display();
    let of_rank =
        |rank: usize| state.iter().map(|(_, t)| t.shape()).find(|shape| shape.len() == rank);
    let (Some(stem), Some(classifier)) = (of_rank(4), of_rank(2)) else {
        bail!("{shown} has no convolution or no classifier: no network of ours");
    };
    let config =
        ModelConfig { classes: classifier[0], in_channels: stem[1], ..ModelConfig::default() };
    let mut model = match named {
        Some(name) => with_weights(path, name.parse()?, config, state)?,
        None => {
            // Deep networks have many names; those with another number of them need not be built.
            let fits =
                |&architecture: &Architecture| with_weights(path, architecture, config, state).ok();
            Architecture::ALL.iter().find_map(fits).with_context(|| {
                format!("{shown} fits no network of ours; --model NAME lists what differs")
            })?
        }
    };
    model.preprocess = Preprocess::from_metadata(&state.metadata)?;
    Ok(model)
}

fn with_weights(
    path: &Path,
    architecture: Architecture,
    config: ModelConfig,
    state: &StateDict,
) -> Result<FloatModel> {
    let network = architecture.build(&config)?;
    let leaves = network.leaves();
    let expected: Vec<(String, Vec<usize>)> =
        leaves.iter().map(|(name, leaf)| (name.clone(), leaf.get().shape().to_vec())).collect();
    let tensors = interop::match_names(&expected, state)
        .map_err(|report| anyhow::anyhow!("{} is no {architecture}: {report}", path.display()))?;
    for ((_, leaf), tensor) in leaves.iter().zip(tensors) {
        leaf.set(tensor);
    }
    Ok(FloatModel {
        architecture,
        config,
        input: None,
        classes: Vec::new(),
        preprocess: None,
        network,
    })
}
