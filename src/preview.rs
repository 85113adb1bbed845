//! `simfluence preview`: the tokens of a task's examples, and which of them carry loss; images.

use crate::cli::{Format, PreviewArgs};
use anyhow::Result;
use serde::Serialize;
use simfluence_core::Examples;
use simfluence_models::{PreparedTask, Task, TokenizedExample, Tokenizer};
use std::io::{IsTerminal, Write};

/// What is printed.
#[derive(Debug, Serialize)]
struct Answer {
    task: String,
    /// Most tokens of an example.
    most_tokens: usize,
    train: Summary,
    test: Summary,
    /// Which of both `examples` are of.
    shown: &'static str,
    examples: Vec<Shown>,
}

/// Counts and lengths of all examples of one kind.
#[derive(Debug, Serialize)]
struct Summary {
    examples: usize,
    /// How many lost tokens because they were too long.
    truncated: usize,
    tokens: u64,
    tokens_with_loss: u64,
    shortest: usize,
    median: usize,
    longest: usize,
}

/// One example.
#[derive(Debug, Serialize)]
struct Shown {
    id: usize,
    key: String,
    dataset: String,
    tokens: Vec<String>,
    ids: Vec<u32>,
    /// Weight of each token in the example's loss; they sum to 1.
    weights: Vec<f64>,
    /// Pixels in a row, if it is an image.
    #[serde(skip)]
    row: Option<usize>,
}

/// Runs the subcommand.
pub fn run(args: &PreviewArgs) -> Result<()> {
    let prepared = Task::load(&args.task)?.prepare(args.data.as_deref())?;
    let (shown, examples, tokens) = match args.test {
        false => ("train", &prepared.train, &prepared.train_tokens),
        true => ("test", &prepared.test, &prepared.test_tokens),
    };
    let answer = Answer {
        task: prepared.task.name.clone(),
        most_tokens: prepared.reading.most_tokens(),
        train: summary(&prepared.train_tokens, prepared.truncated.train),
        test: summary(&prepared.test_tokens, prepared.truncated.test),
        shown,
        examples: show(
            &prepared,
            examples,
            &tokens[..args.examples.min(tokens.len())],
        ),
    };
    print(&answer, args.format)
}

fn summary(tokens: &[TokenizedExample], truncated: usize) -> Summary {
    let mut lengths: Vec<usize> = tokens.iter().map(|e| e.tokens.len()).collect();
    lengths.sort_unstable();
    let with_loss = tokens.iter().map(|e| e.target_count() as u64);
    Summary {
        examples: tokens.len(),
        truncated,
        tokens: lengths.iter().map(|&length| length as u64).sum(),
        tokens_with_loss: with_loss.sum(),
        shortest: lengths.first().copied().unwrap_or(0),
        median: lengths.get(lengths.len() / 2).copied().unwrap_or(0),
        longest: lengths.last().copied().unwrap_or(0),
    }
}

fn show(prepared: &PreparedTask, examples: &Examples, tokens: &[TokenizedExample]) -> Vec<Shown> {
    (examples.as_slice().iter().zip(tokens).enumerate())
        .map(|(id, (example, tokenized))| {
            let mut weights = vec![0.0; tokenized.tokens.len()];
            for at in tokenized.targets() {
                weights[at] = 1.0 / tokenized.target_count() as f64;
            }
            Shown {
                id,
                key: example.key.clone(),
                dataset: example.dataset.clone(),
                tokens: texts(&prepared.tokenizer, &tokenized.tokens),
                ids: tokenized.tokens.clone(),
                weights,
                row: (prepared.tokenizer.image_size()).map(|size| size.columns as usize),
            }
        })
        .collect()
}

/// The text of each token on its own.
fn texts(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
    tokens.iter().map(|&id| tokenizer.decode(&[id])).collect()
}

fn print(answer: &Answer, format: Format) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match format {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(answer)?)?,
        Format::Csv => write_csv(answer, &mut out)?,
        Format::Table => {
            let is_coloured = out.is_terminal();
            write_table(answer, is_coloured, &mut out)?;
        }
    }
    Ok(())
}

/// One line per token.
fn write_csv(answer: &Answer, out: &mut impl Write) -> Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(["example", "key", "position", "id", "token", "weight"])?;
    for example in &answer.examples {
        for (position, token) in example.tokens.iter().enumerate() {
            writer.write_record([
                &example.id.to_string(),
                &example.key,
                &position.to_string(),
                &example.ids[position].to_string(),
                token,
                &example.weights[position].to_string(),
            ])?;
        }
    }
    Ok(writer.flush()?)
}

fn write_table(answer: &Answer, is_coloured: bool, out: &mut impl Write) -> Result<()> {
    for (name, summary) in [("train", &answer.train), ("test", &answer.test)] {
        writeln!(
            out,
            "{name}: {} examples of {} to {} tokens (median {}; {} fit), {} of {} tokens carry loss, {} examples truncated",
            summary.examples,
            summary.shortest,
            summary.longest,
            summary.median,
            answer.most_tokens,
            summary.tokens_with_loss,
            summary.tokens,
            summary.truncated,
        )?;
    }
    for example in &answer.examples {
        let with_loss = example.weights.iter().filter(|&&weight| weight > 0.0);
        writeln!(
            out,
            "\n{} {}: {}, dataset {:?}, {} tokens, {} with loss",
            answer.shown,
            example.id,
            example.key,
            example.dataset,
            example.tokens.len(),
            with_loss.count()
        )?;
        match example.row {
            Some(row) => write!(out, "{}", picture(example, row))?,
            None => writeln!(out, "{}", line(example, is_coloured))?,
        }
    }
    Ok(())
}

/// Brightness from dark to light.
const SHADES: [char; 10] = [' ', '.', ':', '-', '=', '+', '*', '#', '%', '@'];

/// An image of so many pixels in a row, two characters each, and its class in brackets.
fn picture(example: &Shown, row: usize) -> String {
    let (class, pixels) = example.ids.split_last().expect("an image has a class");
    let mut picture = String::new();
    for pixels in pixels.chunks(row) {
        for &pixel in pixels {
            let shade = SHADES[(pixel as usize * SHADES.len() / 256).min(SHADES.len() - 1)];
            picture.extend([shade, shade]);
        }
        picture.push('\n');
    }
    picture + &format!("[{class}]\n")
}

/// Tokens with loss in brackets, or bold green; the others end with a bar.
fn line(example: &Shown, is_coloured: bool) -> String {
    let mut line = String::new();
    for (token, &weight) in example.tokens.iter().zip(&example.weights) {
        let token = escaped(token);
        match (weight > 0.0, is_coloured) {
            (true, true) => line.push_str(&format!("\u{1b}[1;32m[{token}]\u{1b}[0m")),
            (true, false) => line.push_str(&format!("[{token}]")),
            (false, _) => line.push_str(&format!("{token}|")),
        }
    }
    line
}

/// Line ends and other control characters as escapes, so that nothing is hidden or moved.
fn escaped(token: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    token.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::{Shown, line, picture};

    #[test]
    fn images_are_drawn_with_their_class_behind_them() {
        let example = Shown {
            id: 0,
            key: "k".into(),
            dataset: "d".into(),
            tokens: Vec::new(),
            ids: vec![0, 128, 255, 30, 7],
            weights: vec![0.0, 0.0, 0.0, 0.0, 1.0],
            row: Some(2),
        };
        assert_eq!(picture(&example, 2), "  ++\n@@..\n[7]\n");
    }

    #[test]
    fn tokens_with_loss_stand_in_brackets_and_line_ends_are_shown() {
        let example = Shown {
            id: 0,
            key: "k".into(),
            dataset: "d".into(),
            tokens: ["what", " is", "\n", " it"].map(str::to_owned).to_vec(),
            ids: vec![1, 2, 3, 4],
            weights: vec![0.0, 0.0, 0.5, 0.5],
            row: None,
        };
        assert_eq!(line(&example, false), "what| is|[\\n][ it]");
        let coloured = line(&example, true);
        assert_eq!(coloured.matches("\u{1b}[1;32m").count(), 2);
    }
}
