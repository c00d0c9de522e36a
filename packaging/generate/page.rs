//! A manual page: what can be told of a program, put into a template.

use std::io;

use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// Where what is generated goes in a template.
pub const GENERATED: &str = "@generated@\n";
/// Behind this the help of a program says what its template says at more length.
const EXIT_CODES: &str = "Exit codes:";

/// The page of a program, section 1.
///
/// # Errors
/// None in practice: it writes into memory.
pub fn of_program(command: &Command, template: &str) -> io::Result<String> {
    let mut built = command.clone();
    built.build();
    let mut text = rendered(&title(command.get_name(), "1"));
    text += &rendered(&head(&built));
    text += &format!(".SH OPTIONS\n{}", options(&built)?);
    if command.has_subcommands() {
        text += ".SH COMMANDS\nThe options above may stand behind a command, too.\n";
        for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
            text += &rendered(&subsection(command.get_name(), subcommand));
            text += &options(&subcommand.clone().disable_help_flag(true))?;
        }
    }
    text += &rendered(&notes(command));
    Ok(Roff::new().render() + &template.replace(GENERATED, &text))
}

/// The page of a file format, section 5.
pub fn of_file(name: &str, generated: &Roff, template: &str) -> String {
    Roff::new().render() + &rendered(&title(name, "5")) + &template.replace(GENERATED, &rendered(generated))
}

/// Without the definitions that stand once at the head of a page.
fn rendered(roff: &Roff) -> String {
    roff.render().split_off(Roff::new().render().len())
}

fn title(name: &str, section: &str) -> Roff {
    let source = format!("osps {}", env!("CARGO_PKG_VERSION"));
    // A page is as old as its version: there is no date to tell.
    let mut roff = Roff::new();
    roff.control("TH", [&name.to_uppercase(), section, "\"\"", &source, "OSPS manual"]);
    roff
}

fn head(command: &Command) -> Roff {
    let mut roff = Roff::new();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    roff.control("SH", ["NAME"]).text([roman(format!("{} - {about}", command.get_name()))]);
    roff.control("SH", ["SYNOPSIS"]).text(form(None, command));
    roff.control("SH", ["DESCRIPTION"]);
    paragraphs(&mut roff, &command.get_long_about().map_or(about, ToString::to_string));
    roff
}

fn subsection(program: &str, command: &Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SS", []).text(form(Some(program), command));
    let about = command.get_long_about().or(command.get_about());
    paragraphs(&mut roff, &about.map(ToString::to_string).unwrap_or_default());
    roff
}

/// What is typed: the program, the command, their options and arguments.
fn form(program: Option<&str>, command: &Command) -> Vec<Inline> {
    let name = program.iter().copied().chain([command.get_name()]).collect::<Vec<_>>().join(" ");
    let mut line = vec![bold(name)];
    let shown = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let (positionals, options): (Vec<&Arg>, Vec<&Arg>) = shown.partition(|argument| argument.is_positional());
    for argument in options.into_iter().chain(positionals) {
        let must_be = argument.is_required_set();
        line.push(roman(if must_be { " " } else { " [" }));
        line.extend(argument.get_long().map(|long| bold(format!("--{long}"))));
        if argument.get_action().takes_values() {
            let values = argument.get_value_names().unwrap_or_default().join(" ");
            line.push(roman(if argument.is_positional() { "" } else { " " }));
            line.push(italic(values));
        }
        line.push(roman(if must_be { "" } else { "]" }));
    }
    if command.has_subcommands() {
        line.extend([roman(" ["), italic("COMMAND"), roman("]")]);
    }
    line
}

/// Options and arguments, as a list without a heading.
fn options(command: &Command) -> io::Result<String> {
    let mut text = Vec::new();
    Man::new(command.clone()).render_options_section(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(text.split_once(".SH OPTIONS\n").map_or_else(String::new, |(_, list)| list.to_owned()))
}

/// What its help says at the end.
fn notes(command: &Command) -> Roff {
    let help = command.get_after_long_help().or(command.get_after_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let notes = help.split(EXIT_CODES).next().unwrap_or_default().trim();
    let mut roff = Roff::new();
    if !notes.is_empty() {
        roff.control("SH", ["NOTES"]);
        paragraphs(&mut roff, notes);
    }
    roff
}

fn paragraphs(roff: &mut Roff, text: &str) {
    for (index, paragraph) in text.split("\n\n").enumerate() {
        if index > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(paragraph)]);
    }
}
