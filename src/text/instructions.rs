//! The instructions of a template, with those in place that `guard.rs` has for what the engine does with values.

use std::collections::BTreeSet;

use minijinja::Error;
use minijinja::machinery::{Instruction, Instructions, Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;

use super::{guard, values};

/// Most blocks of a template: each call of a macro goes through them.
pub(super) const MAX_BLOCKS: usize = 100;

/// Most operators in a row, those around brackets included: the compiler takes stack for each.
const MAX_OPERATORS: usize = 250;
/// Most `elif` of all open blocks, for the same reason.
const MAX_ELIFS: usize = 100;
/// Most bytes of a name: names are compared at each step.
const MAX_NAME_BYTES: usize = 255;

/// Fails where the compiler could run out of stack.
pub(super) fn check_source(source: &str, syntax: SyntaxConfig) -> Result<(), Error> {
    let (mut n_operators, mut outside_of_brackets) = (0, Vec::new());
    let (mut n_elifs, mut outside_of_ifs) = (0, Vec::new());
    let mut is_tag = false;
    // What is no token is the compiler's to report.
    for (token, span) in tokenize(source, false, syntax).map_while(Result::ok) {
        let too_long = |what: &str, most: usize| {
            Err(values::wrong(format!("line {}: {what} than {most}", span.start_line)))
        };
        match token {
            Token::VariableStart | Token::BlockStart => {
                n_operators = 0;
                outside_of_brackets.clear();
            }
            Token::BracketOpen | Token::ParenOpen | Token::BraceOpen => {
                n_operators += 1;
                outside_of_brackets.push(n_operators);
            }
            Token::BracketClose | Token::ParenClose | Token::BraceClose => {
                n_operators = outside_of_brackets.pop().unwrap_or(0);
            }
            Token::Comma => n_operators = outside_of_brackets.last().copied().unwrap_or(0),
            Token::Ident("if") if is_tag => outside_of_ifs.push(n_elifs),
            Token::Ident("elif") if is_tag => n_elifs += 1,
            Token::Ident("endif") if is_tag => n_elifs = outside_of_ifs.pop().unwrap_or(0),
            Token::Ident("and" | "or" | "not" | "is" | "in" | "if" | "else") => n_operators += 1,
            Token::Ident(name) if name.len() > MAX_NAME_BYTES => {
                return too_long("a name has more bytes", MAX_NAME_BYTES);
            }
            Token::Ident(_) | Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) => {}
            Token::TemplateData(_) | Token::VariableEnd | Token::BlockEnd | Token::Float(_) => {}
            _ => n_operators += 1,
        }
        if n_operators > MAX_OPERATORS {
            return too_long("an expression has more operators", MAX_OPERATORS);
        }
        if n_elifs > MAX_ELIFS {
            return too_long("there are more `elif`", MAX_ELIFS);
        }
        is_tag = matches!(token, Token::BlockStart);
    }
    Ok(())
}

/// The same instructions, guarded.
///
/// # Errors
/// Where a literal has more than a call can take.
pub(super) fn guarded<'s>(instructions: &Instructions<'s>) -> Result<Instructions<'s>, Error> {
    let old: Vec<&Instruction<'s>> = (0..).map_while(|at| instructions.get(at)).collect();
    let targets: BTreeSet<u32> =
        old.iter().filter_map(|instruction| target(&mut (*instruction).clone()).copied()).collect();
    let mut starts = Vec::with_capacity(old.len() + 1);
    let mut new = Vec::with_capacity(old.len() * 2);
    for (at, instruction) in (0_u32..).zip(&old) {
        starts.push(u32::try_from(new.len()).unwrap_or(u32::MAX));
        let key = at.checked_sub(1).filter(|_| !targets.contains(&at)).and_then(|key| instructions.get(key));
        let key_is_text = matches!(key, Some(Instruction::LoadConst(key)) if key.as_str().is_some_and(|key| key.len() <= MAX_NAME_BYTES));
        replace(instruction, key_is_text, &mut |instruction| new.push((at, instruction)))?;
    }
    starts.push(u32::try_from(new.len()).unwrap_or(u32::MAX));
    let mut all = Instructions::new(instructions.name(), instructions.source());
    for (at, mut instruction) in new {
        if let Some(target) = target(&mut instruction) {
            *target = starts.get(*target as usize).copied().unwrap_or(*target);
        }
        match (instructions.get_span(at), instructions.get_line(at)) {
            (Some(span), _) => all.add_with_span(instruction, span),
            (None, Some(line)) => all.add_with_line(instruction, u16::try_from(line).unwrap_or(u16::MAX)),
            (None, None) => all.add(instruction),
        };
    }
    Ok(all)
}

/// Where an instruction may go on instead of at the next.
fn target<'a>(instruction: &'a mut Instruction<'_>) -> Option<&'a mut u32> {
    match instruction {
        Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) => Some(target),
        _ => None,
    }
}

/// What stands for an instruction: a call that does the same on what lies on the stack, or a call before it that looks at
/// that and puts it back, or one behind it that looks at its result.
fn replace<'s>(
    instruction: &Instruction<'s>,
    key_is_text: bool,
    push: &mut dyn FnMut(Instruction<'s>),
) -> Result<(), Error> {
    let too_many = |_| values::wrong("a literal has more than 32767 items");
    let call = |name, n| Instruction::CallFunction(name, Some(n));
    // Filters charge texts that they are given; tests do not.
    let test = |name| Instruction::PerformTest(name, Some(2), !0);
    let same = || instruction.clone();
    match instruction {
        Instruction::Add => push(call(guard::ADD, 2)),
        Instruction::StringConcat => push(call(guard::CONCAT, 2)),
        Instruction::Slice => push(call(guard::SLICE, 4)),
        Instruction::Mul | Instruction::BuildTuple(_) | Instruction::BuildKwargs(_) => {
            push(same());
            push(call(guard::KNOWN, 1));
        }
        Instruction::BuildList(n) => match n.map(u16::try_from) {
            Some(Ok(n)) => push(call(guard::LIST, n)),
            _ => {
                push(same());
                push(call(guard::KNOWN, 1));
            }
        },
        Instruction::BuildMap(n) => push(call(guard::MAP, u16::try_from(n * 2).map_err(too_many)?)),
        Instruction::MergeKwargs(n) | Instruction::UnpackLists(n) => {
            push(call(guard::PASS, u16::try_from(*n).map_err(too_many)?));
            push(Instruction::UnpackList(*n));
            push(same());
        }
        Instruction::GetItem if !key_is_text => {
            push(call(guard::ITEM, 2));
            push(Instruction::UnpackList(2));
            push(same());
        }
        Instruction::PushLoop(_) | Instruction::FastRecurse => {
            push(call(guard::ITERATE, 1));
            push(same());
        }
        Instruction::CallFunction(_, Some(1)) => {
            push(call(guard::ITERATE, 1));
            push(same());
        }
        Instruction::SetAttr(name) => {
            push(Instruction::LoadConst(Value::from(*name)));
            push(call(guard::SET, 3));
            push(Instruction::DiscardTop);
        }
        Instruction::Eq => push(test("\0==")),
        Instruction::Ne => push(test("\0!=")),
        Instruction::Gt => push(test("\0>")),
        Instruction::Gte => push(test("\0>=")),
        Instruction::Lt => push(test("\0<")),
        Instruction::Lte => push(test("\0<=")),
        Instruction::In => push(test("\0in")),
        Instruction::CompareAndPreserve(op) => {
            // The engine does not export the type of `op`.
            push(call(
                match &*format!("{op:?}") {
                    "Eq" => "\0==",
                    "Ne" => "\0!=",
                    "Lt" => "\0<",
                    "Lte" => "\0<=",
                    "Gt" => "\0>",
                    "Gte" => "\0>=",
                    "In" => "\0in",
                    "NotIn" => "\0notin",
                    other => return Err(values::wrong(format!("the comparison {other} is not known"))),
                },
                2,
            ));
            push(Instruction::UnpackList(2));
        }
        Instruction::ApplyFilter(name, n, local) => {
            push(Instruction::ApplyFilter(guard::filter(name).unwrap_or(name), *n, *local));
        }
        Instruction::PerformTest(name, n, local) => {
            push(Instruction::PerformTest(guard::test(name).unwrap_or(name), *n, *local));
        }
        Instruction::CallMethod("changed", Some(n)) => push(call(guard::CHANGED, *n)),
        Instruction::CallMethod("cycle", Some(n)) => push(call(guard::CYCLE, *n)),
        _ => push(same()),
    }
    Ok(())
}
