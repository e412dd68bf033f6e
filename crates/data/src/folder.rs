use std::fs;
use std::path::{Path, PathBuf};

use crate::dataset::beyond;
use crate::{Dataset, Error, Image, Result, Sample, Split, read_image};

/// Names in use for the two splits.
const TRAIN: [&str; 2] = ["train", "training"];
const TEST: [&str; 5] = ["val", "valid", "validation", "test", "testing"];
const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Folders inside a class are searched this deep, so that a link to a parent ends.
const MAX_DEPTH: usize = 8;

/// Pictures in folders, one folder a class: `DIR/train/CLASS/*.jpg`, `DIR/val/CLASS/*.jpg`, as
/// torchvision's `ImageFolder`.
///
/// Classes and files are sorted by name. Pictures are read and decoded when they are asked for,
/// always as RGB.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    classes: Vec<String>,
    files: Vec<(PathBuf, usize)>,
}

impl ImageFolder {
    /// Lists the pictures of one split. The classes are those of the training split, for both.
    ///
    /// # Errors
    /// [`Error::Io`] if a folder is missing or cannot be read, [`Error::DataSet`] if there is no
    /// class, no picture, or a class that training does not have.
    pub fn new(dir: &Path, split: Split) -> Result<Self> {
        let train = find(dir, &TRAIN)?;
        let classes = class_folders(&train)?;
        if classes.is_empty() {
            let reason = format!("{} holds no folders, one for each class", train.display());
            return Err(Error::DataSet { reason });
        }
        let root = match split {
            Split::Train => train,
            Split::Test => find(dir, &TEST)?,
        };
        let mut files = Vec::new();
        for class in class_folders(&root)? {
            let Ok(label) = classes.binary_search(&class) else {
                let path = root.join(&class);
                let reason = format!("{} is a class that training does not have", path.display());
                return Err(Error::DataSet { reason });
            };
            let mut found = Vec::new();
            pictures(&root.join(&class), MAX_DEPTH, &mut found)?;
            found.sort();
            files.extend(found.into_iter().map(|path| (path, label)));
        }
        if files.is_empty() {
            let reason = format!(
                "{} holds no pictures ({}) in its class folders",
                root.display(),
                EXTENSIONS.join(", ")
            );
            return Err(Error::DataSet { reason });
        }
        Ok(Self { classes, files })
    }

    /// The file of the picture at `index`.
    pub fn path(&self, index: usize) -> Option<&Path> {
        self.files.get(index).map(|(path, _)| path.as_path())
    }
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn shape(&self) -> Option<[usize; 3]> {
        None
    }

    fn get(&self, index: usize) -> Result<Sample> {
        let (path, label) = self.files.get(index).ok_or_else(|| beyond(index, self.len()))?;
        let image: Image = read_image(path)?;
        Ok(Sample { image, label: *label })
    }
}

fn find(dir: &Path, names: &[&str]) -> Result<PathBuf> {
    names.iter().map(|name| dir.join(name)).find(|path| path.is_dir()).ok_or_else(|| {
        let reason =
            format!("no folder {} here; pictures belong into {}/CLASS", names[0], names[0]);
        Error::Io { path: dir.display().to_string(), reason }
    })
}

/// The names of the folders in `root`, sorted.
fn class_folders(root: &Path) -> Result<Vec<String>> {
    let mut classes = Vec::new();
    for entry in fs::read_dir(root).map_err(|error| Error::io(root, &error))? {
        let path = entry.map_err(|error| Error::io(root, &error))?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            match name.to_str() {
                // Hidden folders belong to tools.
                Some(name) if name.starts_with('.') => {}
                Some(name) => classes.push(name.to_string()),
                None => {
                    let reason = format!("{} is a class whose name is not UTF-8", path.display());
                    return Err(Error::DataSet { reason });
                }
            }
        }
    }
    classes.sort();
    Ok(classes)
}

fn pictures(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|error| Error::io(dir, &error))? {
        let path = entry.map_err(|error| Error::io(dir, &error))?.path();
        if path.is_dir() {
            if depth > 0 {
                pictures(&path, depth - 1, found)?;
            }
            continue;
        }
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if EXTENSIONS.contains(&&*extension) {
            found.push(path);
        }
    }
    Ok(())
}
