package api

import (
	"bytes"
)

// Rename appends body, a whole answer, to dst with the model's name changed
// where the answer states it: in its own field, or in that of the response or
// message it carries. Everything else stays byte for byte, and so does another
// name than from.
func Rename(dst, body []byte, from, to string) []byte {
	s := scanner{b: body}
	at := 0
	put := func(v []byte, end int) {
		if !isName(v, from) {
			return
		}
		dst = append(dst, body[at:end-len(v)]...)
		dst = AppendString(dst, to)
		at = end
	}
	if s.peek() == '{' {
		for it := s.object(); it.next(); {
			switch string(it.key) {
			case "model":
				v := s.value()
				put(v, s.i)
			case "response", "message":
				if s.peek() != '{' {
					s.value()
					continue
				}
				for in := s.object(); in.next(); {
					v := s.value()
					if string(in.key) == "model" {
						put(v, s.i)
					}
				}
			default:
				s.value()
			}
		}
	}
	return append(dst, body[at:]...)
}

// isName reports whether raw is the JSON string for name, however escaped.
func isName(raw []byte, name string) bool {
	if len(raw) == len(name)+2 && raw[0] == '"' && string(raw[1:len(raw)-1]) == name {
		return true
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return false
	}
	s := scanner{b: raw}
	return text(&s) == name
}

// RenameEvent appends event to dst with the model's name changed in its data;
// see Rename.
func RenameEvent(dst, event []byte, from, to string) []byte {
	lines := 0
	for rest := event; ; lines++ {
		_, after, found := cutData(rest)
		if !found {
			break
		}
		rest = after
	}
	switch lines {
	case 0:
		return append(dst, event...)
	case 1:
		data, rest, _ := cutData(event)
		before := len(event) - len(rest) - len(data)
		dst = append(dst, event[:before]...)
		dst = Rename(dst, data, from, to)
		return append(dst, rest...)
	}
	// Data over several lines is joined before it is read, and cut again.
	data, _ := eventData(event)
	for rest := event; len(rest) > 0; {
		n := lineEnd(rest)
		if line := rest[:n]; !bytes.HasPrefix(line, []byte("data:")) && len(bytes.Trim(line, "\r\n")) > 0 {
			dst = append(dst, line...)
		}
		rest = rest[n:]
	}
	for line := range bytes.SplitSeq(Rename(nil, data, from, to), []byte("\n")) {
		dst = append(append(append(dst, "data:"...), line...), '\n')
	}
	return append(dst, '\n')
}

// cutData returns the value of the first data line of an event and what follows
// it, line end included.
func cutData(event []byte) (data, rest []byte, found bool) {
	for len(event) > 0 {
		n := lineEnd(event)
		if v, ok := bytes.CutPrefix(event[:n], []byte("data:")); ok {
			v = bytes.TrimRight(v, "\r\n")
			return v, event[len("data:")+len(v):], true
		}
		event = event[n:]
	}
	return nil, nil, false
}

// lineEnd returns the length of the first line of b, its end included.
func lineEnd(b []byte) int {
	n := bytes.IndexAny(b, "\r\n")
	switch {
	case n < 0:
		return len(b)
	case b[n] == '\r' && n+1 < len(b) && b[n+1] == '\n':
		return n + 2
	}
	return n + 1
}
