package server

import (
	"bytes"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
)

// upload posts a form; a file of no bytes is left out.
func upload(t *testing.T, url string, fields map[string]string, file []byte) (int, string) {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for name, value := range fields {
		if err := form.WriteField(name, value); err != nil {
			t.Fatal(err)
		}
	}
	if len(file) > 0 {
		part, err := form.CreateFormFile("file", "speech.wav")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := part.Write(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), "POST", url, &body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", form.FormDataContentType())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

func TestTranscriptions(t *testing.T) {
	n := listen(t, fast)
	url := n.URL() + "/v1/audio/transcriptions"
	sound := bytes.Repeat([]byte("whoosh"), 20_000)
	text := func(file []byte) string {
		status, raw := upload(t, url, map[string]string{"model": "penstock/tiny"}, file)
		var a struct{ Text string }
		if err := json.Unmarshal([]byte(raw), &a); err != nil || status != 200 || a.Text == "" {
			t.Fatalf("%d %s", status, raw)
		}
		return a.Text
	}
	heard := text(sound)
	if again := text(sound); again != heard {
		t.Errorf("%q, then %q", heard, again)
	}
	sound[70_000]++
	if text(sound) == heard {
		t.Error("another sound is heard as the same")
	}
	sound[70_000]--
	if _, plain := upload(t, url, map[string]string{"response_format": "text"}, sound); plain != string(quote(heard))+"\n" {
		t.Errorf("text: %s", plain)
	}
	_, raw := upload(t, url, map[string]string{"stream": "true"}, sound)
	streamed := ""
	for _, e := range events(t, []byte(raw)) {
		if e.Object != "transcription.chunk" {
			t.Errorf("event: %+v", e)
		}
		if c := e.Choices[0].Delta.Content; c != nil {
			streamed += *c
		}
	}
	if streamed != heard {
		t.Errorf("streamed %q, whole %q", streamed, heard)
	}
	if status, raw := upload(t, n.URL()+"/v1/audio/translations", map[string]string{"model": "penstock/tiny"}, sound); status != 200 {
		t.Errorf("translation: %d %s", status, raw)
	}
	for what, tc := range map[string]struct {
		fields map[string]string
		file   []byte
		status int
	}{
		"must be given":      {nil, nil, 400},
		"does not exist":     {map[string]string{"model": "none"}, sound, 404},
		"only json and text": {map[string]string{"response_format": "vtt"}, sound, 400},
		"longer than":        {nil, make([]byte, 4096*bytesPerAudioToken), 400},
	} {
		if status, raw := upload(t, url, tc.fields, tc.file); status != tc.status || !strings.Contains(raw, what) {
			t.Errorf("%s: %d %s", what, status, raw)
		}
	}
	object(t, url, map[string]any{"model": "penstock/tiny"}, 400)
}
