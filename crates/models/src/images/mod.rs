//! Images with their classes: where they come from, how they stand in a run set, and the networks
//! that read them.

mod idx;
mod network;
mod source;

pub use idx::{Idx, IdxError};
pub use network::{ImageArchitecture, ImageKind, ImageSettings};
pub use source::{ImageSource, ImageSourceError, Noise};

use crate::settings::TokenizedExample;
use serde::{Deserialize, Serialize};

/// An image of one channel with its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its size.
    pub size: ImageSize,
    /// Brightness of each pixel, row after row.
    pub pixels: Vec<u8>,
    /// Its class, counted from 0.
    pub class: u32,
}

/// Rows and columns of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ImageSize {
    /// Pixels from top to bottom.
    pub rows: u32,
    /// Pixels from left to right.
    pub columns: u32,
}

impl ImageSize {
    /// Number of pixels.
    pub fn pixels(self) -> usize {
        self.rows as usize * self.columns as usize
    }
}

impl std::fmt::Display for ImageSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.rows, self.columns)
    }
}

impl Image {
    /// The pixels, and behind them the class, which is predicted from them.
    pub fn tokens(&self) -> TokenizedExample {
        let pixels = self.pixels.iter().map(|&pixel| u32::from(pixel));
        TokenizedExample {
            tokens: pixels.chain([self.class]).collect(),
            answer_start: self.pixels.len(),
            unscored: Vec::new(),
        }
    }

    /// Size and pixels as text: `28x28` and two hexadecimal digits per pixel.
    pub(crate) fn to_text(&self) -> String {
        let digits: String = self.pixels.iter().map(|p| format!("{p:02x}")).collect();
        format!("{} {digits}", self.size)
    }

    /// What [`Image::to_text`] wrote, of this class; `None` for anything else.
    pub(crate) fn from_text(text: &str, class: u32) -> Option<Self> {
        let (size, digits) = text.split_once(' ')?;
        let (rows, columns) = size.split_once('x')?;
        let size = ImageSize {
            rows: rows.parse().ok()?,
            columns: columns.parse().ok()?,
        };
        let pixel = |pair: &[u8]| {
            let digit = |digit: u8| (digit as char).to_digit(16);
            Some((16 * digit(pair[0])? + digit(pair[1])?) as u8)
        };
        let is_even = digits.len().is_multiple_of(2);
        let pixels: Option<Vec<u8>> = digits.as_bytes().chunks_exact(2).map(pixel).collect();
        let pixels = pixels.filter(|pixels| is_even && pixels.len() == size.pixels())?;
        Some(Self {
            size,
            pixels,
            class,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_come_back_from_text_and_nothing_else_does() {
        let image = Image {
            size: ImageSize {
                rows: 2,
                columns: 3,
            },
            pixels: vec![0, 1, 15, 16, 128, 255],
            class: 4,
        };
        assert_eq!(image.to_text(), "2x3 00010f1080ff");
        assert_eq!(Image::from_text(&image.to_text(), 4), Some(image.clone()));
        assert_eq!(image.tokens().tokens, [0, 1, 15, 16, 128, 255, 4]);
        assert_eq!(image.tokens().targets().collect::<Vec<_>>(), [6]);
        for wrong in [
            "",
            "2x3",
            "2x3 0001",
            "2x3 00010f1080fg",
            "2x2 0 010f10",
            "é 00",
        ] {
            assert_eq!(Image::from_text(wrong, 4), None, "{wrong}");
        }
    }
}
