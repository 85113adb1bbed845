//! What a network on images is made of.

use super::ImageSize;
use crate::settings::{SettingsError, TokenizedExample, TokensError, at_least_one};
use crate::trainable::Trainable;
use crate::weights::Layout;
use serde::{Deserialize, Serialize};

/// Which network reads images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    /// Convolutions, and dense layers behind them.
    Cnn,
    /// Dense layers.
    Mlp,
}

/// A network on images (`[model]` with `kind = "cnn"` or `kind = "mlp"`).
///
/// The pixels `p`, 0 to 255, are read as `(p/255 − mean) / standard_deviation`. Each convolution
/// (stride 1, as many zeros around the image as keep its size) is followed by ReLU and the maximum
/// over 2 × 2 pixels (an odd last row or column is left out), each hidden dense layer by ReLU; the
/// last layer gives the logits of the classes. No convolution and no hidden layer make multinomial
/// logistic regression.
///
/// ```
/// use simfluence_models::{ImageKind, ImageSettings};
/// let settings = ImageSettings::new(ImageKind::Cnn);
/// assert_eq!((&settings.channels[..], settings.kernel), (&[6, 16][..], 5));
/// assert!(settings.check().is_ok());
/// ```
///
/// # Reference
/// LeCun et al. 1998, "Gradient-based learning applied to document recognition" (LeNet-5, whose
/// sizes are the defaults).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageSettings {
    /// Channels of each convolution, default 6 and 16; none of an MLP.
    pub channels: Vec<u32>,
    /// Rows and columns of each convolution's kernel, odd, default 5.
    pub kernel: u32,
    /// Widths of the hidden dense layers, default 84, of an MLP 128.
    pub hidden: Vec<u32>,
    /// Subtracted from pixels between 0 and 1, default 0.
    pub mean: f64,
    /// What the rest is divided by, default 1, above 0.
    pub standard_deviation: f64,
}

impl ImageSettings {
    /// The defaults of a kind.
    pub fn new(kind: ImageKind) -> Self {
        let (channels, hidden) = match kind {
            ImageKind::Cnn => (vec![6, 16], vec![84]),
            ImageKind::Mlp => (Vec::new(), vec![128]),
        };
        Self {
            channels,
            kernel: 5,
            hidden,
            mean: 0.0,
            standard_deviation: 1.0,
        }
    }

    /// Which kind of network it is.
    pub fn kind(&self) -> ImageKind {
        match self.channels.is_empty() {
            true => ImageKind::Mlp,
            false => ImageKind::Cnn,
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A size of 0, an even kernel, a mean that is not finite, a standard deviation that is not
    /// positive and finite.
    pub fn check(&self) -> Result<(), SettingsError> {
        for &channels in &self.channels {
            at_least_one("model.channels", channels)?;
        }
        for &width in &self.hidden {
            at_least_one("model.hidden", width)?;
        }
        let range = |setting, expected, got| {
            Err(SettingsError::Range {
                setting,
                expected,
                got,
            })
        };
        if self.kernel.is_multiple_of(2) {
            return range("model.kernel", "odd", f64::from(self.kernel));
        }
        if !self.mean.is_finite() {
            return range("model.mean", "finite", self.mean);
        }
        let deviation = self.standard_deviation;
        if !(deviation.is_finite() && deviation > 0.0) {
            return range("model.standard_deviation", "positive and finite", deviation);
        }
        Ok(())
    }
}

/// A network for images of one size and a number of classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredArchitecture", into = "StoredArchitecture")]
pub struct ImageArchitecture {
    settings: ImageSettings,
    size: ImageSize,
    classes: u32,
}

/// How it stands in files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredArchitecture {
    settings: ImageSettings,
    size: ImageSize,
    classes: u32,
}

impl TryFrom<StoredArchitecture> for ImageArchitecture {
    type Error = SettingsError;

    fn try_from(stored: StoredArchitecture) -> Result<Self, SettingsError> {
        Self::new(stored.settings, stored.size, stored.classes)
    }
}

impl From<ImageArchitecture> for StoredArchitecture {
    fn from(architecture: ImageArchitecture) -> Self {
        Self {
            settings: architecture.settings,
            size: architecture.size,
            classes: architecture.classes,
        }
    }
}

impl ImageArchitecture {
    /// The network of these settings for images of this size and so many classes.
    ///
    /// # Errors
    /// See [`ImageSettings::check`]; images without pixels, or too small for as many halvings as
    /// there are convolutions; no class.
    pub fn new(
        settings: ImageSettings,
        size: ImageSize,
        classes: u32,
    ) -> Result<Self, SettingsError> {
        settings.check()?;
        at_least_one("classes", classes)?;
        let shortest = size.rows.min(size.columns);
        let convolutions = settings.channels.len();
        if shortest == 0 || u32::BITS - shortest.leading_zeros() <= convolutions as u32 {
            return Err(SettingsError::SmallImages { size, convolutions });
        }
        Ok(Self {
            settings,
            size,
            classes,
        })
    }

    /// Layers and how pixels are read.
    pub fn settings(&self) -> &ImageSettings {
        &self.settings
    }

    /// Size of the images.
    pub fn size(&self) -> ImageSize {
        self.size
    }

    /// Number of classes.
    pub fn classes(&self) -> u32 {
        self.classes
    }

    /// Layers with parameters, the output included.
    pub(crate) fn layers(&self) -> usize {
        self.settings.channels.len() + self.settings.hidden.len() + 1
    }

    /// Names and shapes: of each layer a matrix `[output × input]` and a bias. The matrix of a
    /// convolution has the kernel's values of one output channel in a row, channel after channel of
    /// its input.
    pub(crate) fn layout(&self) -> Layout {
        let settings = &self.settings;
        let area = settings.kernel as usize * settings.kernel as usize;
        let mut parameters = Vec::new();
        let mut push = |name: String, inputs: usize, outputs: u32| {
            let outputs = outputs as usize;
            parameters.push((format!("{name}.weight"), vec![outputs, inputs]));
            parameters.push((format!("{name}.bias"), vec![outputs]));
            outputs
        };
        let mut inputs = 1;
        for (k, &channels) in settings.channels.iter().enumerate() {
            inputs = push(format!("convolutions.{k}"), inputs * area, channels);
        }
        let halvings = settings.channels.len();
        inputs *= (self.size.rows >> halvings) as usize * (self.size.columns >> halvings) as usize;
        for (k, &width) in settings.hidden.iter().enumerate() {
            inputs = push(format!("hidden.{k}"), inputs, width);
        }
        push("output".to_owned(), inputs, self.classes);
        Layout::of(parameters)
    }

    /// Checks that the network has what is to be trained.
    ///
    /// # Errors
    /// More layers than there are, or none; adapters, which are for decoders.
    pub(crate) fn check_trainable(&self, trainable: &Trainable) -> Result<(), SettingsError> {
        let problem = match trainable {
            Trainable::Full | Trainable::Bitfit => return Ok(()),
            Trainable::LastLayers { layers } => {
                at_least_one("trainable.layers", *layers)?;
                if *layers as usize <= self.layers() {
                    return Ok(());
                }
                format!(
                    "trainable.layers is {layers}, and this model has {} layers",
                    self.layers()
                )
            }
            Trainable::Lora(_) | Trainable::Ia3(_) => {
                "lora and ia3 adapt the matrices of a decoder's blocks, and this model reads images; use full, bitfit or last-layers".to_owned()
            }
        };
        Err(SettingsError::Trainable { problem })
    }

    /// Whether each parameter of the layout is trained.
    pub(crate) fn chosen(&self, trainable: &Trainable) -> Vec<bool> {
        let count = 2 * self.layers();
        let first = match trainable {
            Trainable::LastLayers { layers } => count - 2 * *layers as usize,
            _ => 0,
        };
        let is_bias = |k: usize| k % 2 == 1;
        (0..count)
            .map(|k| k >= first && (*trainable != Trainable::Bitfit || is_bias(k)))
            .collect()
    }

    /// Checks that the network can read an example: its pixels and behind them its class.
    pub(crate) fn check(&self, example: &TokenizedExample) -> Result<(), TokensError> {
        let pixels = self.size.pixels();
        let tokens = &example.tokens;
        let is_image = tokens.len() == pixels + 1 && example.answer_start == pixels;
        if !is_image || !example.unscored.is_empty() {
            return Err(TokensError::Image {
                expected: self.size,
                got: tokens.len().saturating_sub(1),
            });
        }
        if let Some(position) = tokens[..pixels].iter().position(|&pixel| pixel > 255) {
            return Err(TokensError::Pixel {
                position,
                got: tokens[position],
            });
        }
        match tokens[pixels] {
            class if class < self.classes => Ok(()),
            class => Err(TokensError::Class {
                class,
                classes: self.classes,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainable::LoraSettings;
    use crate::weights::Architecture;

    const SIZE: ImageSize = ImageSize {
        rows: 28,
        columns: 28,
    };

    fn architecture(kind: ImageKind) -> ImageArchitecture {
        ImageArchitecture::new(ImageSettings::new(kind), SIZE, 10).unwrap()
    }

    #[test]
    fn ref_the_parameter_counts_are_those_of_the_formulas() {
        let count = |kind| architecture(kind).layout().parameter_count();
        let convolutions = 6 * 25 + 6 + 16 * 6 * 25 + 16;
        let dense = 84 * (16 * 7 * 7) + 84 + 10 * 84 + 10;
        assert_eq!(count(ImageKind::Cnn), convolutions + dense);
        assert_eq!(count(ImageKind::Mlp), 128 * 784 + 128 + 10 * 128 + 10);
        let settings = ImageSettings {
            hidden: Vec::new(),
            ..ImageSettings::new(ImageKind::Mlp)
        };
        let regression = ImageArchitecture::new(settings, SIZE, 3).unwrap();
        assert_eq!(regression.layout().parameter_count(), 3 * 784 + 3);
    }

    #[test]
    fn each_way_of_training_chooses_its_parameters() {
        let architecture = Architecture::of_images(architecture(ImageKind::Cnn));
        let count = |trainable| {
            let with = architecture.clone().with_trainable(trainable).unwrap();
            with.trainable_count()
        };
        assert_eq!(count(Trainable::Bitfit), 6 + 16 + 84 + 10);
        assert_eq!(count(Trainable::LastLayers { layers: 1 }), 840 + 10);
        assert_eq!(
            count(Trainable::LastLayers { layers: 4 }),
            count(Trainable::Full)
        );
        let message = |trainable| {
            let error = architecture.clone().with_trainable(trainable);
            error.unwrap_err().to_string()
        };
        let five = message(Trainable::LastLayers { layers: 5 });
        assert!(five.contains("layers is 5, and this model has 4"), "{five}");
        let lora = message(Trainable::Lora(LoraSettings::default()));
        assert!(lora.contains("this model reads images"), "{lora}");
    }

    #[test]
    fn impossible_networks_are_refused() {
        let message = |change: fn(&mut ImageSettings), rows| {
            let mut settings = ImageSettings::new(ImageKind::Cnn);
            change(&mut settings);
            let size = ImageSize { rows, columns: 28 };
            let error = ImageArchitecture::new(settings, size, 10).unwrap_err();
            error.to_string()
        };
        assert!(message(|s| s.kernel = 4, 28).contains("model.kernel is 4"));
        assert!(message(|s| s.channels[1] = 0, 28).contains("model.channels is 0"));
        assert!(message(|s| s.hidden[0] = 0, 28).contains("model.hidden is 0"));
        assert!(message(|s| s.standard_deviation = 0.0, 28).contains("standard_deviation is 0"));
        assert!(message(|s| s.mean = f64::NAN, 28).contains("mean is NaN"));
        let small = message(|_| {}, 3);
        assert!(
            small.contains("3x28") && small.contains("2 convolutions"),
            "{small}"
        );
        assert!(ImageArchitecture::new(ImageSettings::new(ImageKind::Cnn), SIZE, 0).is_err());
        let four = ImageSize {
            rows: 4,
            columns: 4,
        };
        assert!(ImageArchitecture::new(ImageSettings::new(ImageKind::Cnn), four, 2).is_ok());
    }

    #[test]
    fn examples_that_are_no_such_image_are_refused() {
        let size = ImageSize {
            rows: 1,
            columns: 2,
        };
        let network = ImageArchitecture::new(ImageSettings::new(ImageKind::Mlp), size, 3).unwrap();
        let example = |tokens: &[u32]| TokenizedExample {
            tokens: tokens.to_vec(),
            answer_start: tokens.len() - 1,
            unscored: Vec::new(),
        };
        assert_eq!(network.check(&example(&[0, 255, 2])), Ok(()));
        let check = |tokens: &[u32]| network.check(&example(tokens)).unwrap_err();
        assert!(matches!(check(&[0, 2]), TokensError::Image { got: 1, .. }));
        assert!(matches!(
            check(&[0, 256, 2]),
            TokensError::Pixel {
                position: 1,
                got: 256
            }
        ));
        assert!(matches!(
            check(&[0, 0, 3]),
            TokensError::Class {
                class: 3,
                classes: 3
            }
        ));
    }
}
