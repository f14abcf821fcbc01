package token

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// UnsupportedError names a part of a tokenizer.json that this package would not
// reproduce exactly.
type UnsupportedError struct{ Part, What string }

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("tokenizer.json: %s is %s, which is not known here", e.Part, e.What)
}

func unsupported(part, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	if len(what) > 300 {
		what = what[:300] + "..."
	}
	return &UnsupportedError{part, what}
}

// maxIDs bounds what a file can make us allocate: ids are indexes of a table.
const maxIDs = 1 << 22

// How often text may be rewritten, and how long what is put in may be in bytes:
// each step makes a text so much longer.
const (
	maxRewrites = 4
	maxRewrite  = 16
)

// file is tokenizer.json as Hugging Face's tokenizers write it. Truncation and
// padding are left out: engines turn them off.
type file struct {
	Added []struct {
		ID         uint32 `json:"id"`
		Content    string `json:"content"`
		SingleWord bool   `json:"single_word"`
		Left       bool   `json:"lstrip"`
		Right      bool   `json:"rstrip"`
		Normalized bool   `json:"normalized"`
	} `json:"added_tokens"`
	Normalizer *part `json:"normalizer"`
	Pre        *part `json:"pre_tokenizer"`
	Post       *part `json:"post_processor"`
	Model      struct {
		Type         string            `json:"type"`
		Dropout      *float64          `json:"dropout"`
		Prefix       string            `json:"continuing_subword_prefix"`
		Suffix       string            `json:"end_of_word_suffix"`
		ByteFallback bool              `json:"byte_fallback"`
		IgnoreMerges bool              `json:"ignore_merges"`
		Vocab        map[string]uint32 `json:"vocab"`
		Merges       []mergeLine       `json:"merges"`
	} `json:"model"`
}

// part is one step before or after the model, with the fields of all kinds.
type part struct {
	Type    string  `json:"type"`
	Norms   []*part `json:"normalizers"`
	Pres    []*part `json:"pretokenizers"`
	Posts   []*part `json:"processors"`
	Pattern struct {
		String *string `json:"String"`
		Regex  *string `json:"Regex"`
	} `json:"pattern"`
	Content     string `json:"content"`
	Prepend     string `json:"prepend"`
	Behavior    string `json:"behavior"`
	Invert      bool   `json:"invert"`
	UseRegex    *bool  `json:"use_regex"`
	PrefixSpace *bool  `json:"add_prefix_space"`
	Scheme      string `json:"prepend_scheme"`
	Replacement string `json:"replacement"`
	Split       *bool  `json:"split"`
	Single      []struct {
		Special *struct {
			ID string `json:"id"`
		} `json:"SpecialToken"`
		Sequence *struct {
			ID string `json:"id"`
		} `json:"Sequence"`
	} `json:"single"`
	Specials map[string]struct {
		IDs []uint32 `json:"ids"`
	} `json:"special_tokens"`
}

// mergeLine is "a b", or ["a", "b"] in newer files.
type mergeLine [2]string

func (m *mergeLine) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		var list []string
		if err := json.Unmarshal(b, &list); err != nil || len(list) != 2 {
			return fmt.Errorf("merge %.80s is no pair", b)
		}
		*m = mergeLine(list)
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("merge %.80s: %w", b, err)
	}
	left, right, ok := strings.Cut(s, " ")
	if !ok || strings.Contains(right, " ") {
		return fmt.Errorf("merge %.80s is no pair", b)
	}
	*m = mergeLine{left, right}
	return nil
}

// flatten returns the steps of p, with sequences unrolled.
func flatten(p *part) []*part {
	if p == nil {
		return nil
	}
	if p.Type != "Sequence" {
		return []*part{p}
	}
	var out []*part
	for _, q := range slices.Concat(p.Norms, p.Pres, p.Posts) {
		out = append(out, flatten(q)...)
	}
	return out
}

// isTrue reads a switch that is on when not given.
func isTrue(b *bool) bool { return b == nil || *b }

// Read reads a model's tokenizer.json. What it cannot reproduce exactly it
// refuses with an [UnsupportedError].
func Read(data []byte) (*Tokenizer, error) {
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("read tokenizer.json: %w", err)
	}
	m := &f.Model
	switch {
	case m.Type != "BPE":
		return nil, unsupported("model.type", "%q", m.Type)
	case m.Dropout != nil && *m.Dropout != 0:
		return nil, unsupported("model.dropout", "%v", *m.Dropout)
	case m.Prefix != "":
		return nil, unsupported("model.continuing_subword_prefix", "%q", m.Prefix)
	case m.Suffix != "":
		return nil, unsupported("model.end_of_word_suffix", "%q", m.Suffix)
	case len(m.Vocab) == 0:
		return nil, errors.New("read tokenizer.json: model.vocab is empty")
	}
	t := &Tokenizer{}
	for _, step := range []func(*file) error{t.readPre, t.readNormalizer, t.readVocab, t.readMerges, t.readAdded, t.readPost} {
		if err := step(&f); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// readPre reads how text is cut into pieces. That decides whether symbols are
// bytes or characters.
func (t *Tokenizer) readPre(f *file) error {
	const at = "pre_tokenizer"
	pattern, bytes := "", false
	for _, p := range flatten(f.Pre) {
		switch {
		case p == nil || bytes || t.meta != nil:
			return unsupported(at, "a sequence with more behind ByteLevel or Metaspace")
		case p.Type == "ByteLevel":
			bytes = true
			if isTrue(p.PrefixSpace) {
				return unsupported(at+".add_prefix_space", "true")
			}
			if isTrue(p.UseRegex) {
				if pattern != "" {
					return unsupported(at, "a sequence of two patterns")
				}
				pattern = gpt2Pattern
			}
		case p.Type == "Split" && p.Pattern.Regex != nil && pattern == "":
			pattern = *p.Pattern.Regex
			isolated := p.Behavior == "Isolated" && !p.Invert || p.Behavior == "Removed" && p.Invert
			if _, ok := styles[pattern]; !ok {
				return unsupported(at+".pattern", "%q", pattern)
			} else if !isolated {
				return unsupported(at+".behavior", "%q with invert %v", p.Behavior, p.Invert)
			}
		case p.Type == "Split" && p.Pattern.String != nil && *p.Pattern.String == " " && noSpaces(f.Normalizer):
			// Gemma splits at spaces when there are none any more.
		case p.Type == "Metaspace" && pattern == "":
			if err := t.readMetaspace(p); err != nil {
				return err
			}
		default:
			return unsupported(at, "%q", p.Type)
		}
	}
	switch {
	case bytes && pattern == "":
		return unsupported(at+".use_regex", "false, with no pattern")
	case bytes:
		t.splitter = newSplitter(styles[pattern])
	case pattern != "":
		return unsupported(at, "a pattern without ByteLevel")
	}
	return nil
}

func (t *Tokenizer) readMetaspace(p *part) error {
	scheme := p.Scheme
	if scheme == "" { // older files
		scheme = "always"
		if !isTrue(p.PrefixSpace) {
			scheme = "never"
		}
	}
	t.meta = &metaspace{mark: p.Replacement, first: scheme == "first", always: scheme == "always", split: isTrue(p.Split)}
	if scheme != "never" && !t.meta.first && !t.meta.always {
		return unsupported("pre_tokenizer.prepend_scheme", "%q", scheme)
	}
	if p.Replacement == "" || p.Replacement == " " || len(p.Replacement) > maxRewrite {
		return unsupported("pre_tokenizer.replacement", "%q", p.Replacement)
	}
	return nil
}

// noSpaces reports whether a normalizer leaves no space in a text.
func noSpaces(p *part) bool {
	steps := flatten(p)
	if len(steps) == 0 {
		return false
	}
	last := steps[len(steps)-1]
	return last != nil && last.Type == "Replace" && last.Pattern.String != nil && *last.Pattern.String == " " && !strings.Contains(last.Content, " ")
}

func (t *Tokenizer) readNormalizer(f *file) error {
	const at = "normalizer"
	for _, p := range flatten(f.Normalizer) {
		switch {
		case p == nil:
			return unsupported(at, "a sequence with nothing in it")
		case p.Type == "NFC":
			t.nfc = true
			continue
		case p.Type == "Prepend" && p.Prepend != "":
			t.rewrites = append(t.rewrites, rewrite{"", p.Prepend})
		case p.Type == "Replace" && p.Pattern.String != nil && *p.Pattern.String != "":
			t.rewrites = append(t.rewrites, rewrite{*p.Pattern.String, p.Content})
		default:
			return unsupported(at, "%q", p.Type)
		}
		if last := t.rewrites[len(t.rewrites)-1]; !settled(last.to) || len(last.to) > maxRewrite || len(t.rewrites) > maxRewrites {
			return unsupported(at, "%q with %q", p.Type, last.to)
		}
	}
	switch {
	case t.splitter != nil && len(t.rewrites) > 0:
		return unsupported(at, "more than NFC before ByteLevel")
	case t.meta != nil && len(t.rewrites) > 0:
		return unsupported(at, "a rewriting before Metaspace")
	}
	return nil
}

// readPost reads what is put around a text.
func (t *Tokenizer) readPost(f *file) error {
	const at = "post_processor"
	for _, p := range flatten(f.Post) {
		switch {
		case p == nil:
			return unsupported(at, "a sequence with nothing in it")
		case p.Type == "ByteLevel": // moves offsets only
			continue
		case p.Type != "TemplateProcessing":
			return unsupported(at, "%q", p.Type)
		case len(t.before)+len(t.after) > 0:
			return unsupported(at, "a sequence of two templates")
		}
		texts := 0
		for _, s := range p.Single {
			switch {
			case s.Sequence != nil && s.Sequence.ID == "A":
				texts++
			case s.Special != nil && texts == 0:
				t.before = append(t.before, p.Specials[s.Special.ID].IDs...)
			case s.Special != nil:
				t.after = append(t.after, p.Specials[s.Special.ID].IDs...)
			}
		}
		for _, id := range slices.Concat(t.before, t.after) {
			if int(id) >= t.Size() {
				return unsupported(at, "a template with the unknown id %d", id)
			}
		}
		if texts != 1 {
			return unsupported(at, "a template with %d texts", texts)
		}
	}
	return nil
}
