package server

import (
	"fmt"
	"io"
	"net/http"

	"penstock.dev/penstock/internal/enginesim"
)

// bytesPerAudioToken makes a second of 16-bit mono at 16 kHz about fifty
// tokens, as in Whisper's encoder.
const bytesPerAudioToken = 640

// transcribe handles the audio uploads: a form with a model and a file. What
// it hears depends on every byte of the file; a second of speech makes about
// three tokens of text.
func (s *Server) transcribe(w http.ResponseWriter, r *http.Request) {
	sound, m, err := s.readUpload(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer r.MultipartForm.RemoveAll() //nolint:errcheck // nothing is kept that could fail to go
	q := &wireRequest{Prompt: prompts{sound}, Stream: r.FormValue("stream") == "true"}
	limit := min(2+len(sound)/16, int(s.options.MaxModelLen)-len(sound))
	choices := s.speak(q, m.adapter, sound, max(1, limit), voiceStart, script{})
	choices[0].answer.finish = enginesim.FinishStop
	p := &transcription{reply: &reply{query: q, chat: true, model: m.name, id: requestID(r), words: s.wording(true)}}
	p.format = r.FormValue("response_format")
	fill(&p.format, "json")
	p.head = fmt.Appendf(nil, `{"id":%s,"object":"transcription.chunk","created":%d,"model":%s,"choices":[`, quote("trsc-"+p.id), unixNow(), quote(p.model))
	if p.generation, err = s.begin(r.Context(), p.id, choices); err != nil {
		s.fail(w, r, err)
		return
	}
	defer p.release()
	if q.Stream {
		p.stream(w, r, p)
	} else {
		p.whole(w, r, p.body)
	}
}

// transcription is what was heard.
type transcription struct {
	*reply
	format string
}

func (p *transcription) body() []byte {
	text := p.text(0)
	if p.format == "text" {
		return append(quote(text), '\n')
	}
	t := p.tally()
	return appendJSON(nil, map[string]any{"text": text, "usage": map[string]any{"type": "duration", "seconds": (t.prompt + 49) / 50}})
}

// readUpload reads the form and returns the sound as tokens.
func (s *Server) readUpload(r *http.Request) ([]uint32, served, error) {
	r.Body = http.MaxBytesReader(nil, r.Body, maxBody)
	if err := r.ParseMultipartForm(1 << 20); err != nil {
		return nil, served{}, badRequest("", "the body is not a valid form: %v", err)
	}
	m, err := s.find(r.FormValue("model"), "")
	if err != nil {
		return nil, m, err
	}
	switch r.FormValue("response_format") {
	case "", "json", "text":
	default:
		return nil, m, badRequest("response_format", "response_format: only json and text are supported")
	}
	file, _, err := r.FormFile("file")
	if err != nil {
		return nil, m, badRequest("file", "file: must be given")
	}
	defer file.Close()
	content, err := io.ReadAll(file)
	switch {
	case err != nil:
		return nil, m, badRequest("file", "file: %v", err)
	case len(content) == 0:
		return nil, m, badRequest("file", "file: must not be empty")
	case len(content)/bytesPerAudioToken+2 >= int(s.options.MaxModelLen):
		return nil, m, badRequest("file", "file: the audio is longer than the maximum context length of %d tokens", s.options.MaxModelLen)
	}
	return hear(content), m, nil
}

// hear makes one token of every so many bytes.
func hear(content []byte) []uint32 {
	var tokens []uint32
	for from := 0; from < len(content); from += bytesPerAudioToken {
		c := enginesim.NewContext("audio")
		for _, b := range content[from:min(from+bytesPerAudioToken, len(content))] {
			c = c.Add(uint32(b))
		}
		tokens = append(tokens, uint32(c.Key()))
	}
	return tokens
}
