//! Images from IDX files as the examples of a task.

use super::{Idx, IdxError, Image, ImageSize};
use crate::example::{Form, TextExample};
use crate::text::TaskData;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Images and labels of a folder (`[data]` with `source = "images"`).
///
/// The files have the names of MNIST's unless others are given, with or without `.gz` behind them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSource {
    /// The folder, relative to the task file or else to the working directory; with `--data` it is
    /// relative to the folder given there, which is the folder itself where there is no `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Images to train on, default `train-images-idx3-ubyte`.
    #[serde(default = "default_train_images")]
    pub train_images: String,
    /// Their labels, default `train-labels-idx1-ubyte`.
    #[serde(default = "default_train_labels")]
    pub train_labels: String,
    /// Images to test on, default `t10k-images-idx3-ubyte`.
    #[serde(default = "default_test_images")]
    pub test_images: String,
    /// Their labels, default `t10k-labels-idx1-ubyte`.
    #[serde(default = "default_test_labels")]
    pub test_labels: String,
    /// Number of classes, default 10; labels are below it.
    #[serde(default = "default_classes")]
    pub classes: u32,
    /// Names of the classes in the order of their labels, default the labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_names: Option<Vec<String>>,
    /// The dataset of all these images, default the name of each image's class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// What keys begin with, default `image`: `image-train-17` is the image at place 17, counted
    /// from 0, of the images to train on.
    #[serde(default = "default_name")]
    pub name: String,
    /// Training images drawn from each class, default 0.
    #[serde(default)]
    pub train_per_class: usize,
    /// Test images drawn from each class, default 0.
    #[serde(default)]
    pub test_per_class: usize,
    /// Whether the images to train on that are not drawn are there to pre-train on, default no.
    #[serde(default)]
    pub corpus: bool,
    /// Each training image at several levels of noise, default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
    /// Seed of the draw, default 0.
    #[serde(default)]
    pub seed: u64,
}

/// Gaussian noise of pixels. Each training image is there once per level, with a tag for the level
/// (`noise-0.25`) and the columns
///
/// | column | content |
/// | --- | --- |
/// | `kind` | the tag; of test images `image` |
/// | `unit` | the class, of test images, too |
/// | `original` | key of the image without noise |
///
/// so that `report` tells influence on test images of the same class and of others by the level.
///
/// A pixel `p` between 0 and 1 becomes `p + σ z` with `z` standard normal, cut to between 0 and 1
/// and rounded to 255ths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    /// Standard deviations `σ`, at least 0; 0 leaves the image as it is.
    pub levels: Vec<f64>,
    /// Seed of `z`, default 0.
    #[serde(default)]
    pub seed: u64,
}

fn default_train_images() -> String {
    "train-images-idx3-ubyte".into()
}

fn default_train_labels() -> String {
    "train-labels-idx1-ubyte".into()
}

fn default_test_images() -> String {
    "t10k-images-idx3-ubyte".into()
}

fn default_test_labels() -> String {
    "t10k-labels-idx1-ubyte".into()
}

fn default_classes() -> u32 {
    10
}

fn default_name() -> String {
    "image".into()
}

impl ImageSource {
    /// Checks the settings.
    ///
    /// # Errors
    /// Nothing to draw; no class, more than a label can name, or another number of names; levels of
    /// noise that are none, negative, not finite or there twice.
    pub fn check(&self) -> Result<(), ImageSourceError> {
        let wrong = |setting, problem: String| ImageSourceError::Setting { setting, problem };
        if self.train_per_class == 0 && self.test_per_class == 0 && !self.corpus {
            return Err(ImageSourceError::Nothing);
        }
        if !(1..=256).contains(&self.classes) {
            let problem = format!("it is {}; it must be 1 to 256", self.classes);
            return Err(wrong("data.classes", problem));
        }
        if let Some(names) = &self.class_names
            && names.len() != self.classes as usize
        {
            let problem = format!(
                "there are {} names for {} classes (data.classes)",
                names.len(),
                self.classes
            );
            return Err(wrong("data.class_names", problem));
        }
        let Some(noise) = &self.noise else {
            return Ok(());
        };
        if noise.levels.is_empty() {
            return Err(wrong("data.noise.levels", "there is none".to_owned()));
        }
        for (k, level) in noise.levels.iter().enumerate() {
            let problem = if !(level.is_finite() && *level >= 0.0) {
                format!("{level} is not at least 0 and finite")
            } else if noise.levels[..k].contains(level) {
                format!("{level} is there twice")
            } else {
                continue;
            };
            return Err(wrong("data.noise.levels", problem));
        }
        Ok(())
    }

    /// Reads the files in a folder and draws training and test examples, class after class.
    ///
    /// The same files, settings and seed give the same examples.
    ///
    /// # Errors
    /// See [`ImageSource::check`] and [`Idx::read`]; other numbers of images and labels; a label
    /// beyond the classes; too few images of a class.
    pub fn load(&self, folder: &Path) -> Result<TaskData, ImageSourceError> {
        self.check()?;
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut data = TaskData::default();
        if self.train_per_class > 0 || self.corpus {
            let images = self.read(folder, &self.train_images, &self.train_labels)?;
            let (drawn, others) = images.draw(self.train_per_class, &mut rng)?;
            let mut noise = self.noise.as_ref().map(|noise| {
                let rng = ChaCha8Rng::seed_from_u64(noise.seed);
                (noise.levels.as_slice(), rng)
            });
            for index in drawn {
                let example = self.example("train", index, images.image(index));
                match &mut noise {
                    None => data.train.push(example),
                    Some((levels, rng)) => {
                        let noisy = levels.iter().map(|&level| with_noise(&example, level, rng));
                        data.train.extend(noisy);
                    }
                }
            }
            if self.corpus {
                let others = others.into_iter();
                data.corpus_images
                    .extend(others.map(|index| images.image(index)));
            }
        }
        if self.test_per_class > 0 {
            let images = self.read(folder, &self.test_images, &self.test_labels)?;
            let (drawn, _) = images.draw(self.test_per_class, &mut rng)?;
            for index in drawn {
                let mut example = self.example("test", index, images.image(index));
                if self.noise.is_some() {
                    set_kind(&mut example, "image");
                }
                data.test.push(example);
            }
        }
        Ok(data)
    }

    fn read(
        &self,
        folder: &Path,
        images: &str,
        labels: &str,
    ) -> Result<LabelledImages, ImageSourceError> {
        let [images_path, labels_path] = [images, labels].map(|name| existing(folder, name));
        let images = Idx::read(&images_path, 3)?;
        let labels = Idx::read(&labels_path, 1)?;
        let wrong = |problem: String| ImageSourceError::Files {
            images: images_path.clone(),
            labels: labels_path.clone(),
            problem,
        };
        let (rows, columns) = (images.shape[1], images.shape[2]);
        let (count, label_count) = (images.shape[0], labels.values.len());
        if count != label_count {
            return Err(wrong(format!("{count} images, but {label_count} labels")));
        }
        if count == 0 || rows == 0 || columns == 0 {
            return Err(wrong(format!("{count} images of {rows}x{columns} pixels")));
        }
        let is_beyond = |&label: &u8| u32::from(label) >= self.classes;
        if let Some(place) = labels.values.iter().position(is_beyond) {
            return Err(wrong(format!(
                "label {place} (counted from 0) is {}, but data.classes is {}",
                labels.values[place], self.classes
            )));
        }
        Ok(LabelledImages {
            size: ImageSize {
                rows: rows as u32,
                columns: columns as u32,
            },
            pixels: images.values,
            labels: labels.values,
            classes: self.classes,
            path: images_path,
        })
    }

    fn example(&self, part: &str, index: usize, image: Image) -> TextExample {
        let class = match &self.class_names {
            Some(names) => names[image.class as usize].clone(),
            None => image.class.to_string(),
        };
        TextExample {
            key: format!("{}-{part}-{index}", self.name),
            dataset: self.dataset.clone().unwrap_or_else(|| class.clone()),
            form: Form::Image(image),
            columns: BTreeMap::from([("class".to_owned(), class)]),
            ..TextExample::default()
        }
    }
}

/// A file of this name, or with `.gz` behind it if only that is there.
fn existing(folder: &Path, name: &str) -> PathBuf {
    let plain = folder.join(name);
    let packed = folder.join(format!("{name}.gz"));
    match !plain.exists() && packed.exists() {
        true => packed,
        false => plain,
    }
}

/// An example at a level of noise.
fn with_noise(example: &TextExample, level: f64, rng: &mut ChaCha8Rng) -> TextExample {
    let mut noisy = example.clone();
    if level > 0.0
        && let Form::Image(image) = &mut noisy.form
    {
        for pixel in &mut image.pixels {
            let normal: f64 = StandardNormal.sample(rng);
            let value = f64::from(*pixel) / 255.0 + level * normal;
            *pixel = (value.clamp(0.0, 1.0) * 255.0).round() as u8;
        }
    }
    let tag = format!("noise-{level}");
    noisy.key = format!("{}-{tag}", example.key);
    set_kind(&mut noisy, &tag);
    noisy.tags.push(tag);
    noisy.columns.insert("original".into(), example.key.clone());
    noisy
}

/// Says of what kind an example is, and that its class is its unit.
fn set_kind(example: &mut TextExample, kind: &str) {
    let class = example.columns.get("class").cloned().unwrap_or_default();
    example.columns.insert("kind".into(), kind.to_owned());
    example.columns.insert("unit".into(), class);
}

/// Images and their labels.
struct LabelledImages {
    size: ImageSize,
    pixels: Vec<u8>,
    labels: Vec<u8>,
    classes: u32,
    path: PathBuf,
}

impl LabelledImages {
    fn image(&self, index: usize) -> Image {
        let count = self.size.pixels();
        Image {
            size: self.size,
            pixels: self.pixels[index * count..(index + 1) * count].to_vec(),
            class: u32::from(self.labels[index]),
        }
    }

    /// Places of so many images of each class, class after class, and those of the others,
    /// ascending.
    fn draw(
        &self,
        per_class: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<(Vec<usize>, Vec<usize>), ImageSourceError> {
        let mut drawn = Vec::new();
        let mut others = Vec::new();
        for class in 0..self.classes {
            let is_member = |&index: &usize| u32::from(self.labels[index]) == class;
            let mut members: Vec<usize> = (0..self.labels.len()).filter(is_member).collect();
            if members.len() < per_class {
                return Err(ImageSourceError::TooFew {
                    path: self.path.clone(),
                    class,
                    got: members.len(),
                    wanted: per_class,
                });
            }
            members.shuffle(rng);
            others.extend(members.split_off(per_class));
            drawn.extend(members);
        }
        others.sort_unstable();
        Ok((drawn, others))
    }
}

/// Why images cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageSourceError {
    /// A setting that is not allowed.
    #[error("{setting}: {problem}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A source of which nothing is used.
    #[error(
        "a source of images needs train_per_class, test_per_class or corpus = true; as it stands, none of its images is used"
    )]
    Nothing,
    /// A file that cannot be read.
    #[error(transparent)]
    Idx(#[from] IdxError),
    /// Images and labels that do not go together.
    #[error("{} and {}: {problem}", images.display(), labels.display())]
    Files {
        /// File of the images.
        images: PathBuf,
        /// File of the labels.
        labels: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Not enough images to draw from.
    #[error("{}: class {class} has {got} images, but {wanted} of each class are wanted", path.display())]
    TooFew {
        /// File of the images.
        path: PathBuf,
        /// The class.
        class: u32,
        /// Its images.
        got: usize,
        /// Images wanted.
        wanted: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn source(text: &str) -> ImageSource {
        toml::from_str(&format!("classes = 2\n{text}")).unwrap()
    }

    fn idx(shape: &[u32], values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, shape.len() as u8];
        bytes.extend(shape.iter().flat_map(|length| length.to_be_bytes()));
        bytes.extend(values);
        bytes
    }

    /// Six images of 2 × 2 pixels to train on and four to test on; the first pixel is the place.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (part, count) in [("train", 6_u8), ("t10k", 4)] {
            let pixels: Vec<u8> = (0..count).flat_map(|k| [k, 100, 0, 255]).collect();
            let labels: Vec<u8> = (0..count).map(|k| k % 2).collect();
            let n = u32::from(count);
            let write = |name: &str, bytes: Vec<u8>| {
                std::fs::write(folder.path().join(format!("{part}-{name}")), bytes).unwrap();
            };
            write("images-idx3-ubyte", idx(&[n, 2, 2], &pixels));
            write("labels-idx1-ubyte", idx(&[n], &labels));
        }
        folder
    }

    fn image(example: &TextExample) -> &Image {
        match &example.form {
            Form::Image(image) => image,
            other => panic!("{other:?} is no image"),
        }
    }

    #[test]
    fn images_are_drawn_from_each_class_and_the_rest_is_to_pre_train_on() {
        let folder = folder();
        let settings = source(
            "train_per_class = 2\ntest_per_class = 1\ncorpus = true\nclass_names = [\"even\", \"odd\"]",
        );
        let data = settings.load(folder.path()).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (4, 2));
        let mut places: Vec<u8> = (data.train.iter()).map(|e| image(e).pixels[0]).collect();
        places.extend(data.corpus_images.iter().map(|image| image.pixels[0]));
        assert_eq!(places.iter().collect::<HashSet<_>>().len(), 6);
        for example in data.train.iter().chain(&data.test) {
            let place = image(example).pixels[0];
            assert!(example.key.ends_with(&format!("-{place}")), "{example:?}");
            assert_eq!(image(example).class, u32::from(place % 2));
            assert_eq!(example.dataset, ["even", "odd"][usize::from(place % 2)]);
        }
        assert_eq!(settings.load(folder.path()).unwrap(), data);
    }

    #[test]
    fn noise_repeats_each_training_image_at_every_level() {
        let folder = folder();
        let text = "train_per_class = 1\ntest_per_class = 1\nname = \"m\"\ndataset = \"all\"\nnoise = { levels = [0, 0.5, 2] }";
        let data = source(text).load(folder.path()).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (6, 2));
        for group in data.train.chunks(3) {
            let original = &group[0].columns["original"];
            assert!(original.starts_with("m-train-"));
            let levels: Vec<&str> = group.iter().map(|e| &*e.columns["kind"]).collect();
            assert_eq!(levels, ["noise-0", "noise-0.5", "noise-2"]);
            assert_eq!(group[1].tags, ["noise-0.5"]);
            assert_eq!(group[1].columns["unit"], group[1].columns["class"]);
            assert_eq!(group[1].key, format!("{original}-noise-0.5"));
            assert_eq!(image(&group[0]).pixels[1..], [100, 0, 255]);
            assert_ne!(image(&group[0]).pixels, image(&group[1]).pixels);
            assert_eq!(group[2].dataset, "all");
        }
        assert_eq!(data.test[0].columns["kind"], "image");
        assert_eq!(data.test[0].columns["unit"], "0");
    }

    /// Of a pixel in the middle, noise of a small level has its own mean and deviation.
    #[test]
    fn ref_noise_has_the_standard_deviation_of_its_level() {
        let size = ImageSize {
            rows: 100,
            columns: 100,
        };
        let example = TextExample {
            form: Form::Image(Image {
                size,
                pixels: vec![128; 10_000],
                class: 0,
            }),
            ..TextExample::default()
        };
        let noisy = with_noise(&example, 0.1, &mut ChaCha8Rng::seed_from_u64(3));
        let values: Vec<f64> = (image(&noisy).pixels.iter())
            .map(|&p| f64::from(p) / 255.0)
            .collect();
        let mean = values.iter().sum::<f64>() / 1e4;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 1e4;
        // Four standard errors: 0.1/100, and 0.1/√(2·10⁴).
        assert!((mean - 128.0 / 255.0).abs() < 4e-3, "{mean}");
        assert!((variance.sqrt() - 0.1).abs() < 3e-3, "{variance}");
    }

    #[test]
    fn files_that_do_not_go_together_are_refused() {
        let message = |change: &dyn Fn(&Path), text: &str| {
            let folder = folder();
            change(folder.path());
            let error = source(text).load(folder.path()).unwrap_err();
            error.to_string()
        };
        let labels = "train-labels-idx1-ubyte";
        let write = |bytes: Vec<u8>| {
            move |folder: &Path| std::fs::write(folder.join(labels), &bytes).unwrap()
        };
        let one = "train_per_class = 1";
        let five = message(&write(idx(&[5], &[0; 5])), one);
        assert!(five.contains("6 images, but 5 labels"), "{five}");
        let beyond = message(&write(idx(&[6], &[0, 1, 0, 2, 0, 1])), one);
        assert!(beyond.contains("label 3 (counted from 0) is 2"), "{beyond}");
        let few = message(&|_| {}, "train_per_class = 4");
        assert!(few.contains("class 0 has 3 images"), "{few}");
        let missing = message(
            &|folder| std::fs::remove_file(folder.join(labels)).unwrap(),
            one,
        );
        assert!(missing.contains(labels), "{missing}");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (text, expected) in [
            ("", "none of its images is used"),
            (
                "corpus = true\nclass_names = [\"a\"]",
                "1 names for 2 classes",
            ),
            ("corpus = true\nnoise = { levels = [] }", "there is none"),
            (
                "corpus = true\nnoise = { levels = [-1] }",
                "-1 is not at least 0",
            ),
            (
                "corpus = true\nnoise = { levels = [1, 1.0] }",
                "1 is there twice",
            ),
        ] {
            let message = source(text).check().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
