package api

import (
	"bytes"

	"penstock.dev/penstock/internal/kv"
)

// Image is an image of a request.
type Image struct {
	Key  kv.Key // stands for its content, or for its address
	Part []byte // as a part of a chat message
}

// MaxImages is how many images of a request are told apart.
const MaxImages = 64

// Images returns the images of a request that may be encoded elsewhere, each once,
// in their order. Body must be valid.
func (k Kind) Images(body []byte) []Image {
	var list string
	switch k {
	case Chat, Messages:
		list = "messages"
	case Responses:
		list = "input"
	default:
		return nil
	}
	if !bytes.Contains(body, []byte("image")) {
		return nil
	}
	var found images
	turns := Member(body, list)
	if len(turns) == 0 || turns[0] != '[' {
		return nil
	}
	s := scanner{b: turns}
	for it := s.array(); it.next(); {
		if turn := s.value(); s.err == nil {
			found.of(k, Member(turn, "content"))
		}
	}
	return found.list
}

// images are those that have been found.
type images struct{ list []Image }

// of finds those in the content of a turn.
func (f *images) of(k Kind, content []byte) {
	if len(content) == 0 || content[0] != '[' {
		return
	}
	s := scanner{b: content}
	for it := s.array(); it.next(); {
		part := s.value()
		if s.err != nil || len(part) == 0 || part[0] != '{' {
			continue
		}
		switch kind := string(Member(part, "type")); {
		case k == Chat && kind == `"image_url"`:
			f.add(Member(part, "image_url"), part)
		case k == Responses && kind == `"input_image"`:
			f.addURL(Member(part, "image_url"))
		case k == Messages && kind == `"image"`:
			f.source(Member(part, "source"))
		case k == Messages && kind == `"tool_result"`:
			f.of(k, Member(part, "content"))
		}
	}
}

// source finds the image of a source of the Messages API.
func (f *images) source(raw []byte) {
	if len(raw) == 0 || raw[0] != '{' {
		return
	}
	url, media, data := Member(raw, "url"), Member(raw, "media_type"), Member(raw, "data")
	switch string(Member(raw, "type")) {
	case `"url"`:
		f.addURL(url)
	case `"base64"`:
		if isString(media) && isString(data) {
			joined := append([]byte(`"data:`), media[1:len(media)-1]...)
			f.addURL(append(append(joined, ";base64,"...), data[1:]...))
		}
	}
}

// addURL adds the image of a raw URL.
func (f *images) addURL(raw []byte) {
	if isString(raw) {
		f.add(raw, append(append([]byte(`{"type":"image_url","image_url":{"url":`), raw...), '}', '}'))
	}
}

func (f *images) add(content, part []byte) {
	key := kv.Seed(content)
	if len(content) == 0 || len(f.list) == MaxImages {
		return
	}
	for i := range f.list {
		if f.list[i].Key == key {
			return
		}
	}
	f.list = append(f.list, Image{key, part})
}

// processing are the fields of a chat completion that change what an image becomes.
var processing = [...]string{"mm_processor_kwargs", "media_io_kwargs"}

// EncodeImage returns the body of a chat completion that has an image encoded and
// nothing said of it, for the model and in the manner of the request body.
func EncodeImage(body []byte, i Image) []byte {
	b := append(make([]byte, 0, len(i.Part)+256), '{')
	for _, name := range append([]string{"model"}, processing[:]...) {
		if v := Member(body, name); v != nil {
			b = append(append(append(AppendString(b, name), ':'), v...), ',')
		}
	}
	b = append(append(b, `"messages":[{"role":"user","content":[`...), i.Part...)
	return append(b, `]}],"max_tokens":1,"stream":false}`...)
}

// JoinObjects returns one JSON object with the members of several, which must be
// valid.
func JoinObjects(list [][]byte) []byte {
	b := []byte{'{'}
	for _, raw := range list {
		raw = bytes.TrimSpace(raw)
		inner := bytes.TrimSpace(raw[1 : len(raw)-1])
		if len(inner) == 0 {
			continue
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(b, inner...)
	}
	return append(b, '}')
}
