/// Characters with a place in them.
pub(super) struct Cursor<'a> {
    rest: std::str::Chars<'a>,
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { rest: text.chars() }
    }

    pub fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    pub fn next(&mut self) -> Option<char> {
        self.rest.next()
    }

    pub fn at_end(&self) -> bool {
        self.rest.as_str().is_empty()
    }

    pub fn take_if(&mut self, want: char) -> bool {
        let hit = self.peek() == Some(want);
        if hit {
            self.rest.next();
        }
        hit
    }
}
