//! The data of a command: loaders of both splits, preprocessing, classes.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ottava::data::{
    Augment, DataSpec, Dataset, Loader, LoaderOptions, OnBadImage, Preprocess, Split, Subset,
};
use ottava::nn::Batch;

use crate::args;
use crate::output::note;
use crate::setup::{parsed, usage};

/// A data set, ready to load.
pub struct Task {
    pub spec: DataSpec,
    pub preprocess: Preprocess,
    workers: usize,
    on_bad_image: OnBadImage,
}

impl Task {
    /// The data set of the flags; preprocessing from the flag, the model file or the data set.
    pub fn new(args: &args::Data, of_model: Option<Preprocess>) -> Result<Self> {
        let spec: DataSpec = parsed(args.spec())?;
        let preprocess = match (&args.preprocess, of_model) {
            (Some(name), _) => preprocess(name)?,
            (None, Some(preprocess)) => preprocess,
            (None, None) => spec.preprocess(),
        };
        let on_bad_image = match args.bad_images {
            args::BadImages::Refuse => OnBadImage::Refuse,
            args::BadImages::Skip => OnBadImage::Skip,
        };
        Ok(Self { spec, preprocess, workers: args.workers, on_bad_image })
    }

    /// The training split, shuffled and augmented.
    pub fn training(&self, batch: usize, args: &args::Training) -> Result<Loader> {
        let jitter = args.color_jitter.as_deref().map(parsed).transpose()?;
        self.shuffled(batch, args.seed, |data| match args.augment {
            args::Augment::Standard => {
                Ok(Augment { jitter, ..Augment::suited_to(data, &self.preprocess)? })
            }
            args::Augment::None => Ok(Augment { jitter, ..Augment::none() }),
        })
    }

    /// The training split in a random order.
    pub fn shuffled(
        &self,
        batch: usize,
        seed: u64,
        augment: impl FnOnce(&dyn Dataset) -> Result<Augment>,
    ) -> Result<Loader> {
        let data = self.spec.load(Split::Train)?;
        let augment = augment(&*data)?;
        let options =
            LoaderOptions { shuffle: true, seed, augment, drop_last: true, ..self.options(batch) };
        // Fewer images than a batch are one short batch, not none.
        let options = LoaderOptions { drop_last: data.len() >= batch, ..options };
        self.loader(data, options)
    }

    /// The test split, in order.
    pub fn test(&self, batch: usize) -> Result<Loader> {
        self.loader(self.spec.load(Split::Test)?, self.options(batch))
    }

    /// `count` training images spread over the split, in order, as they are.
    pub fn calibration(&self, batch: usize, count: usize) -> Result<Loader> {
        if count == 0 {
            usage!("--calibration 0: observers need at least one image");
        }
        let data = Arc::new(Subset::spread(self.spec.load(Split::Train)?, count));
        self.loader(data, self.options(batch))
    }

    /// So many batches of training images spread over the split, in order, as they are: whole ones, of which
    /// each counts alike.
    pub fn whole_batches(&self, batch: usize, count: usize) -> Result<Loader> {
        let data = self.spec.load(Split::Train)?;
        let data = Arc::new(Subset::spread(data, count.saturating_mul(batch)));
        let drop_last = data.len() >= batch;
        self.loader(data, LoaderOptions { drop_last, ..self.options(batch) })
    }

    /// `count` test images spread over the split, in order.
    pub fn test_images(&self, batch: usize, count: usize) -> Result<Loader> {
        if count == 0 {
            usage!("--images 0: there is nothing to measure on");
        }
        let data = Arc::new(Subset::spread(self.spec.load(Split::Test)?, count));
        self.loader(data, self.options(batch))
    }

    fn options(&self, batch: usize) -> LoaderOptions {
        let Self { workers, on_bad_image, .. } = *self;
        LoaderOptions { batch, workers, on_bad_image, ..LoaderOptions::default() }
    }

    fn loader(&self, data: Arc<dyn Dataset>, options: LoaderOptions) -> Result<Loader> {
        Ok(Loader::new(data, self.preprocess.clone(), options)?)
    }
}

/// The shape of an image as the network gets it.
pub fn input_shape(loader: &Loader) -> Result<[usize; 3]> {
    let shape = match loader.data().shape() {
        Some(shape) => shape,
        // The first picture that can be read; all have three channels.
        None => {
            let data = loader.data();
            let mut pictures = (0..data.len()).map(|index| data.get(index));
            let first = match loader.options().on_bad_image {
                OnBadImage::Refuse => pictures.next(),
                OnBadImage::Skip => pictures.find(Result::is_ok).or_else(|| Some(data.get(0))),
            };
            first.context("no pictures")??.image.shape()
        }
    };
    Ok(loader.preprocess().output_shape(shape)?)
}

/// The batches of an epoch as training takes them.
pub fn batches(
    loader: &Loader,
    epoch: usize,
) -> impl Iterator<Item = Result<Batch, ottava::data::Error>> {
    loader.epoch(epoch as u64).map(|batch| batch.map(|batch| (batch.images, batch.labels)))
}

/// Names what the loaders left out, on standard error and in the job's object.
pub fn name_skipped(loaders: &[&Loader], json: &mut serde_json::Value, global: &args::Global) {
    // Calibration may meet again what training met.
    let skipped: BTreeSet<String> = loaders
        .iter()
        .flat_map(|loader| loader.skipped().into_values())
        .map(|error| error.to_string())
        .collect();
    if !skipped.is_empty() {
        note(global, format!("{} pictures were left out:", skipped.len()));
        skipped.iter().for_each(|reason| note(global, reason));
        json["skipped"] = serde_json::json!(skipped);
    }
}

/// A preset by name, or a file of settings.
pub fn preprocess(name: &str) -> Result<Preprocess> {
    let path = Path::new(name);
    if path.extension().is_none_or(|extension| extension != "toml") {
        return parsed(name);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    let table: toml::Table = toml::from_str(&text).with_context(|| format!("{name} is no TOML"))?;
    if let Some(key) = table.keys().find(|key| !Preprocess::KEYS.contains(&key.as_str())) {
        bail!("{name}: no setting is called `{key}`; there are {}", Preprocess::KEYS.join(", "));
    }
    let entries = table.into_iter().map(|(key, value)| {
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Array(values) => {
                values.iter().map(toml::Value::to_string).collect::<Vec<_>>().join(",")
            }
            value => value.to_string(),
        };
        (key, text)
    });
    Preprocess::from_settings(entries).context(name.to_owned())?.with_context(|| {
        format!("{name} sets no pixels; write pixels = \"normalized\", \"unit\" or \"raw\"")
    })
}
