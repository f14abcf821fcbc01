package api

import (
	"bytes"
	"fmt"
	"strings"
)

// FormError says where a body stops being a multipart form.
type FormError struct {
	Offset int // byte of the body
	Want   string
}

func (e *FormError) Error() string {
	return fmt.Sprintf("not a valid multipart form at byte %d: expected %s", e.Offset, e.Want)
}

// maxParts bounds the parts of a form.
const maxParts = 256

// ScanForm reads a multipart form (RFC 7578) once. It finds model and stream,
// and takes nothing that two parsers could read differently: lines end in CRLF,
// no preamble, and model and stream stand there at most once.
func ScanForm(body []byte, boundary string) (Request, error) {
	f := form{b: body, mark: []byte("\r\n--" + boundary)}
	if boundary == "" || !bytes.HasPrefix(body, f.mark[2:]) {
		return f.r, f.fail("the boundary that Content-Type names")
	}
	f.i = len(f.mark) - 2
	for range maxParts {
		last, err := f.delimiter()
		if err != nil {
			return f.r, err
		}
		if last {
			return f.r, f.r.checkModel()
		}
		if err := f.part(); err != nil {
			return f.r, err
		}
	}
	return f.r, f.fail(fmt.Sprintf("at most %d parts", maxParts))
}

// form walks a multipart body.
type form struct {
	b    []byte
	mark []byte // line end and boundary
	i    int
	r    Request

	hasModel, hasStream bool
}

func (f *form) fail(want string) error { return &FormError{Offset: f.i, Want: want} }

// delimiter consumes what follows a boundary and reports whether it was the
// last.
func (f *form) delimiter() (last bool, err error) {
	rest := f.b[f.i:]
	if bytes.HasPrefix(rest, []byte("--")) {
		if len(bytes.Trim(rest[2:], " \t\r\n")) > 0 {
			return false, f.fail("the end of the body")
		}
		return true, nil
	}
	if !bytes.HasPrefix(rest, []byte("\r\n")) {
		return false, f.fail("a line end behind the boundary")
	}
	f.i += 2
	return false, nil
}

// part consumes one part and the boundary behind it.
func (f *form) part() error {
	begin := f.i - len(f.mark) // of the boundary before it
	name, file, err := f.header()
	if err != nil {
		return err
	}
	n := bytes.Index(f.b[f.i:], f.mark)
	if n < 0 {
		return f.fail("another boundary")
	}
	value := f.b[f.i : f.i+n]
	field, _, _ := strings.Cut(name, "[")
	switch {
	case isControl([]byte(field)):
		f.r.places.strip = append(f.r.places.strip, span{begin, f.i + n + len("\r\n")})
	case carries([]byte(field)):
		// A field of a form is text: what is no object in it is nothing to an engine.
		if s := (scanner{b: f.b[:f.i+n], i: f.i}); s.peek() == '{' {
			f.r.places.inside(&s)
			if s.err != nil {
				return s.err
			}
		}
	case file:
		f.r.media++
		f.r.mediaBytes += n
	case name == "model":
		if f.hasModel {
			return &FieldError{"model", "must stand there once"}
		}
		f.hasModel, f.r.Model, f.r.places.model = true, string(value), span{f.i, f.i + n}
	case name == "stream":
		if f.hasStream {
			return &FieldError{"stream", "must stand there once"}
		}
		switch strings.ToLower(string(value)) {
		case "true", "1", "on", "yes":
			f.r.Stream = true
		}
		f.hasStream = true
	}
	f.i += n + len(f.mark)
	return nil
}

// header consumes a part's header and the blank line, and returns its name and
// whether it is a file.
func (f *form) header() (name string, file bool, err error) {
	for {
		n := bytes.Index(f.b[f.i:], []byte("\r\n"))
		if n < 0 {
			return "", false, f.fail("a header line")
		}
		line := f.b[f.i : f.i+n]
		if n == 0 {
			f.i += 2
			if name == "" {
				return "", false, f.fail("a part with a name")
			}
			return name, file, nil
		}
		key, value, ok := strings.Cut(string(line), ":")
		switch {
		case !ok || key == "" || strings.ContainsAny(key, " \t\r\n\"") || strings.ContainsAny(value, "\r\n\x00"):
			return "", false, f.fail("a header line")
		case strings.EqualFold(key, "Content-Transfer-Encoding"):
			return "", false, f.fail("no transfer encoding")
		case strings.EqualFold(key, "Content-Disposition"):
			if name != "" {
				return "", false, f.fail("one Content-Disposition")
			}
			if name, file, ok = disposition(value); !ok {
				return "", false, f.fail("Content-Disposition: form-data with a name")
			}
		}
		f.i += n + 2
	}
}

// disposition reads `form-data; name="model"; filename="a.wav"`. File names may
// be anything; of the part's own name it takes only what needs no decoding.
func disposition(v string) (name string, file, ok bool) {
	kind, rest, _ := strings.Cut(v, ";")
	if !strings.EqualFold(strings.TrimSpace(kind), "form-data") {
		return "", false, false
	}
	for rest = strings.TrimSpace(rest); rest != ""; {
		key, after, found := strings.Cut(rest, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		if !found || strings.ContainsAny(key, ";\"") {
			return "", false, false
		}
		value, tail, valid := parameter(after)
		if !valid {
			return "", false, false
		}
		switch key {
		case "name":
			if name != "" || value == "" || strings.ContainsAny(value, "\\%") {
				return "", false, false
			}
			name = value
		case "name*":
			return "", false, false
		case "filename", "filename*":
			file = true
		}
		rest = tail
	}
	return name, file, name != ""
}

// parameter reads a parameter's value, quoted or bare, and the semicolon behind
// it.
func parameter(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest, _ = strings.Cut(s, ";")
		value = strings.TrimSpace(value)
		return value, strings.TrimSpace(rest), !strings.ContainsAny(value, "\" \t")
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			rest = strings.TrimSpace(s[i+1:])
			after, cut := strings.CutPrefix(rest, ";")
			return s[1:i], strings.TrimSpace(after), cut || rest == ""
		}
	}
	return "", "", false
}
