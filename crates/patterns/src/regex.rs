/// The part of Go's regular expressions that translated path patterns can hold: literals, `.`, classes, groups, `|`, `*`, `+`, `?`,
/// counted repeats, `^` and `$`. Matches by simulating all threads at once, so time is bounded by program length times text length.
#[derive(Debug, Clone)]
pub(crate) struct Regex {
    program: Vec<Step>,
}

#[derive(Debug, Clone)]
enum Step {
    Char(char),
    /// Anything but a newline.
    Any,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    Start,
    End,
    Split(usize, usize),
    Jump(usize),
    Accept,
}

#[derive(Debug, Clone)]
enum Node {
    Empty,
    Step(Step),
    Sequence(Vec<Node>),
    Either(Vec<Node>),
    Repeat { node: Box<Node>, min: u32, max: Option<u32> },
}

/// Go's limit on counted repeats.
const MAX_REPEAT: u32 = 1000;
/// Bounds what nested counted repeats may expand to.
const MAX_PROGRAM: usize = 20_000;
/// Groups within groups; Go's limit. Reading and writing them recurses.
const MAX_DEPTH: usize = 1_000;

pub(crate) fn ranges_contain(ranges: &[(char, char)], c: char) -> bool {
    ranges.iter().any(|(low, high)| (*low..=*high).contains(&c))
}

impl Regex {
    /// `None` if Go would not compile it (or it holds what no path pattern needs).
    pub fn parse(text: &str) -> Option<Self> {
        let mut parser = Parser { chars: text.chars().collect(), at: 0, depth: 0 };
        let node = parser.alternatives()?;
        if parser.at != parser.chars.len() {
            return None;
        }
        let mut program = Vec::new();
        emit(&node, &mut program)?;
        program.push(Step::Accept);
        Some(Self { program })
    }

    /// Whether any part of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        let mut threads = Threads::new(self.program.len());
        let mut next = Threads::new(self.program.len());
        let mut chars = text.chars();
        let mut first = true;
        loop {
            let c = chars.next();
            if self.add(&mut threads, 0, first, c.is_none()) {
                return true;
            }
            first = false;
            let Some(c) = c else { return false };
            let last = chars.as_str().is_empty();
            next.clear();
            for &at in &threads.list {
                let hit = match &self.program[at] {
                    Step::Char(want) => *want == c,
                    Step::Any => c != '\n',
                    Step::Class { negated, ranges } => ranges_contain(ranges, c) != *negated,
                    _ => false,
                };
                if hit && self.add(&mut next, at + 1, false, last) {
                    return true;
                }
            }
            std::mem::swap(&mut threads, &mut next);
        }
    }

    /// Follows the steps that read nothing; true once one of them accepts.
    fn add(&self, threads: &mut Threads, from: usize, start: bool, end: bool) -> bool {
        let mut stack = vec![from];
        while let Some(at) = stack.pop() {
            if std::mem::replace(&mut threads.seen[at], true) {
                continue;
            }
            match &self.program[at] {
                Step::Accept => return true,
                Step::Jump(to) => stack.push(*to),
                Step::Split(a, b) => stack.extend([*b, *a]),
                Step::Start if start => stack.push(at + 1),
                Step::End if end => stack.push(at + 1),
                Step::Start | Step::End => {}
                _ => threads.list.push(at),
            }
        }
        false
    }
}

struct Threads {
    list: Vec<usize>,
    seen: Vec<bool>,
}

impl Threads {
    fn new(size: usize) -> Self {
        Self { list: Vec::with_capacity(size), seen: vec![false; size] }
    }

    fn clear(&mut self) {
        self.list.clear();
        self.seen.fill(false);
    }
}

fn emit(node: &Node, program: &mut Vec<Step>) -> Option<()> {
    if program.len() > MAX_PROGRAM {
        return None;
    }
    match node {
        Node::Empty => {}
        Node::Step(step) => program.push(step.clone()),
        Node::Sequence(nodes) => nodes.iter().try_for_each(|node| emit(node, program))?,
        Node::Either(nodes) => {
            let mut exits = Vec::new();
            for (i, node) in nodes.iter().enumerate() {
                if i + 1 == nodes.len() {
                    emit(node, program)?;
                    break;
                }
                let split = program.len();
                program.push(Step::Accept);
                emit(node, program)?;
                exits.push(program.len());
                program.push(Step::Accept);
                program[split] = Step::Split(split + 1, program.len());
            }
            let end = program.len();
            exits.into_iter().for_each(|exit| program[exit] = Step::Jump(end));
        }
        Node::Repeat { node, min, max } => {
            (0..*min).try_for_each(|_| emit(node, program))?;
            let Some(max) = max else {
                let split = program.len();
                program.push(Step::Accept);
                emit(node, program)?;
                program.push(Step::Jump(split));
                program[split] = Step::Split(split + 1, program.len());
                return Some(());
            };
            let mut splits = Vec::new();
            for _ in *min..*max {
                splits.push(program.len());
                program.push(Step::Accept);
                emit(node, program)?;
            }
            let end = program.len();
            splits.into_iter().for_each(|split| program[split] = Step::Split(split + 1, end));
        }
    }
    Some(())
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    /// Groups that are open.
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn take(&mut self, want: char) -> bool {
        let hit = self.peek() == Some(want);
        self.at += usize::from(hit);
        hit
    }

    fn alternatives(&mut self) -> Option<Node> {
        let mut all = vec![self.sequence()?];
        while self.take('|') {
            all.push(self.sequence()?);
        }
        Some(if all.len() == 1 { all.remove(0) } else { Node::Either(all) })
    }

    fn sequence(&mut self) -> Option<Node> {
        let mut nodes = Vec::new();
        // Go refuses a repeat operator right after another, apart from the lazy `?`.
        let mut repeated = false;
        while let Some(c) = self.peek() {
            if c == '|' || c == ')' {
                break;
            }
            if let Some((min, max)) = self.repeat() {
                let node = nodes.pop()?;
                self.take('?');
                if repeated {
                    return None;
                }
                repeated = true;
                nodes.push(Node::Repeat { node: Box::new(node), min, max });
                continue;
            }
            repeated = false;
            nodes.push(self.atom()?);
        }
        Some(if nodes.is_empty() { Node::Empty } else { Node::Sequence(nodes) })
    }

    /// A repeat operator here; braces that are none are literal.
    fn repeat(&mut self) -> Option<(u32, Option<u32>)> {
        let found = match self.peek()? {
            '*' => (0, None),
            '+' => (1, None),
            '?' => (0, Some(1)),
            '{' => return self.counted(),
            _ => return None,
        };
        self.at += 1;
        Some(found)
    }

    fn counted(&mut self) -> Option<(u32, Option<u32>)> {
        let rest = &self.chars[self.at + 1..];
        let close = rest.iter().position(|c| *c == '}')?;
        let inner: String = rest[..close].iter().collect();
        let number = |s: &str| {
            let plain = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) && (s == "0" || !s.starts_with('0'));
            plain.then(|| s.parse::<u32>().ok()).flatten()
        };
        let (min, max) = match inner.split_once(',') {
            None => number(&inner).map(|n| (n, Some(n)))?,
            Some((min, "")) => (number(min)?, None),
            Some((min, max)) => (number(min)?, Some(number(max)?)),
        };
        if min > MAX_REPEAT || max.is_some_and(|max| max > MAX_REPEAT || max < min) {
            return None;
        }
        self.at += close + 2;
        Some((min, max))
    }

    fn atom(&mut self) -> Option<Node> {
        let c = self.peek()?;
        self.at += 1;
        Some(Node::Step(match c {
            '.' => Step::Any,
            '^' => Step::Start,
            '$' => Step::End,
            '[' => self.class()?,
            '\\' => self.escape()?,
            '(' => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return None;
                }
                let inner = self.alternatives()?;
                self.depth -= 1;
                return self.take(')').then_some(inner);
            }
            c => Step::Char(c),
        }))
    }

    fn escape(&mut self) -> Option<Step> {
        let c = self.peek()?;
        self.at += 1;
        if let Some((negated, ranges)) = perl_class(c) {
            return Some(Step::Class { negated, ranges });
        }
        literal_escape(c).map(Step::Char)
    }

    fn class(&mut self) -> Option<Step> {
        let negated = self.take('^');
        let mut ranges = Vec::new();
        let mut first = true;
        loop {
            if !first && self.take(']') {
                return Some(Step::Class { negated, ranges });
            }
            first = false;
            if self.peek()? == '['
                && let Some(length) = self.named_class_length()
            {
                ranges.extend(self.named_class(length)?);
                continue;
            }
            if self.peek()? == '\\'
                && let Some((negated_class, inner)) = self.chars.get(self.at + 1).and_then(|c| perl_class(*c))
            {
                self.at += 2;
                ranges.extend(if negated_class { complement(&inner) } else { inner });
                continue;
            }
            let low = self.class_char()?;
            let range = self.peek() == Some('-') && self.chars.get(self.at + 1).is_some_and(|c| *c != ']');
            let high = if range {
                self.at += 1;
                self.class_char()?
            } else {
                low
            };
            if high < low {
                return None;
            }
            ranges.push((low, high));
        }
    }

    fn class_char(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        if c != '\\' {
            return Some(c);
        }
        let c = self.peek()?;
        self.at += 1;
        literal_escape(c)
    }

    /// How long the name in `[:name:]` is, if that is what stands here. What has no end is no name: its characters count as themselves.
    fn named_class_length(&self) -> Option<usize> {
        let rest = self.chars[self.at..].strip_prefix(&['[', ':'])?;
        rest.windows(2).position(|pair| pair == [':', ']'])
    }

    fn named_class(&mut self, length: usize) -> Option<Vec<(char, char)>> {
        let name: String = self.chars[self.at + 2..][..length].iter().collect();
        self.at += length + 4;
        let (negated, name) = name.strip_prefix('^').map_or((false, name.as_str()), |name| (true, name));
        let ranges = match name {
            "alnum" => vec![('0', '9'), ('A', 'Z'), ('a', 'z')],
            "alpha" => vec![('A', 'Z'), ('a', 'z')],
            "ascii" => vec![('\0', '\x7f')],
            "blank" => vec![('\t', '\t'), (' ', ' ')],
            "cntrl" => vec![('\0', '\x1f'), ('\x7f', '\x7f')],
            "digit" => vec![('0', '9')],
            "graph" => vec![('!', '~')],
            "lower" => vec![('a', 'z')],
            "print" => vec![(' ', '~')],
            "punct" => vec![('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
            "space" => vec![('\t', '\r'), (' ', ' ')],
            "upper" => vec![('A', 'Z')],
            "word" => vec![('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
            "xdigit" => vec![('0', '9'), ('A', 'F'), ('a', 'f')],
            _ => return None,
        };
        Some(if negated { complement(&ranges) } else { ranges })
    }
}

fn perl_class(c: char) -> Option<(bool, Vec<(char, char)>)> {
    let ranges = match c.to_ascii_lowercase() {
        'd' => vec![('0', '9')],
        's' => vec![('\t', '\n'), ('\x0c', '\r'), (' ', ' ')],
        'w' => vec![('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
        _ => return None,
    };
    Some((c.is_ascii_uppercase(), ranges))
}

fn literal_escape(c: char) -> Option<char> {
    Some(match c {
        'a' => '\x07',
        'f' => '\x0c',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\x0b',
        c if c.is_ascii_punctuation() => c,
        _ => return None,
    })
}

/// The characters in none of `ranges`, which are sorted.
fn complement(ranges: &[(char, char)]) -> Vec<(char, char)> {
    let mut out = Vec::new();
    let mut next = Some('\0');
    for &(low, high) in ranges {
        if let Some(from) = next
            && from < low
        {
            let before = (from..low).next_back();
            out.extend(before.map(|to| (from, to)));
        }
        next = (high..=char::MAX).nth(1);
    }
    out.extend(next.map(|from| (from, char::MAX)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches() {
        for (regex, text, want) in [
            ("^a|b$", "axx", true),
            ("^a|b$", "xxb", true),
            ("^a|b$", "xbx", false),
            ("^a{2}$", "aa", true),
            ("^a{2}$", "a", false),
            ("^a{2,}$", "aaaa", true),
            ("^a{1,2}$", "aaa", false),
            ("^a{x}$", "a{x}", true),
            ("^(.*/)?x$", "a/b/x", true),
            ("^(.*/)?x$", "x", true),
            ("^(.*/)?x$", "ax", false),
            ("^[[:digit:]]+$", "123", true),
            ("^[^[:digit:]]$", "1", false),
            ("^[]a]$", "]", true),
            ("^[[:]$", ":", true),
            ("^[[:]]$", "[]", true),
            ("^[[:a]$", "[", true),
            ("^\\d\\D$", "1x", true),
            ("^[\\D]$", "1", false),
            ("^.$", "\n", false),
            ("^[^/]$", "\n", true),
            ("", "anything", true),
        ] {
            assert_eq!(Regex::parse(regex).unwrap().matches(text), want, "{regex} {text:?}");
        }
        for bad in ["*", "^a**", "[", "[a", "(", "a)", "\\z", "[b-a]", "[[:nope:]]", "[[::]]", "[[:x", "[[:"] {
            assert!(Regex::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
        // On a stack as small as those of the threads that read what clients send.
        let small = std::thread::Builder::new().stack_size(2 << 20);
        let parse = move || {
            (Regex::parse(&nested(1_000)).is_some(), Regex::parse(&nested(1_001)).is_some(), Regex::parse(&"(".repeat(1 << 20)).is_some())
        };
        assert_eq!(small.spawn(parse).unwrap().join().unwrap(), (true, false, false));
    }

    #[test]
    fn time_is_bounded() {
        let regex = Regex::parse(&format!("^{}x$", "(.*/)?[^/]*".repeat(40))).unwrap();
        assert!(!regex.matches(&"a/".repeat(400)));
        assert!(regex.matches(&format!("{}x", "a/".repeat(400))));
    }
}
