package pages

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
)

// completions is an endpoint in the style of language model APIs: a POST that is
// answered with chunks of JSON, and with [DONE] at the end.
func completions(w http.ResponseWriter, r *http.Request) {
	var request struct{ Messages []struct{ Content string } }
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || len(request.Messages) == 0 {
		http.Error(w, "no messages", http.StatusBadRequest)
		return
	}
	sse.Serve(w, r, chunks(r.Context(), request.Messages[0].Content))
}

// chunks yields a prompt, word by word.
func chunks(ctx context.Context, prompt string) iter.Seq2[sse.Event, error] {
	return func(yield func(sse.Event, error) bool) {
		for word := range strings.SplitAfterSeq(prompt, " ") {
			if word == "fail " {
				yield(sse.Event{}, errors.New("out of words"))
				return
			}
			delta := map[string]any{"index": 0, "delta": map[string]any{"content": word}}
			if !yield(sse.JSON(map[string]any{"object": "chat.completion.chunk", "choices": []any{delta}})) {
				return
			}
		}
		yield(sse.Event{Data: "[DONE]"}, nil)
	}
}

func TestOpenAI(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(completions))
	defer server.Close()
	for _, client := range []struct {
		name string
		ask  func(t *testing.T, prompt string) (string, error)
	}{
		{"openai-go", func(t *testing.T, prompt string) (string, error) {
			client := openai.NewClient(option.WithBaseURL(server.URL), option.WithAPIKey("none"), option.WithMaxRetries(0))
			stream := client.Chat.Completions.NewStreaming(t.Context(), openai.ChatCompletionNewParams{
				Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)},
			})
			defer stream.Close()
			var got strings.Builder
			for stream.Next() {
				got.WriteString(stream.Current().Choices[0].Delta.Content)
			}
			return got.String(), stream.Err()
		}},
		{"npm openai", func(t *testing.T, prompt string) (string, error) {
			if _, err := os.Stat("../node_modules/openai"); err != nil {
				tools.Missing(t, "openai is not installed: npm ci")
			}
			out, err := exec.CommandContext(t.Context(), tools.Path(t, "node"), "openai.mjs", server.URL, prompt).Output()
			return string(out), err
		}},
	} {
		t.Run(client.name, func(t *testing.T) {
			const prompt = "What is the answer?\n\n  “Two \r\n lines”, 日本語 👍"
			got, err := client.ask(t, prompt)
			if err != nil || got != prompt {
				t.Errorf("got %q, %v, want %q", got, err, prompt)
			}
			// One that breaks off in the middle must not pass for a whole one.
			if got, err := client.ask(t, "one two fail three"); err == nil {
				t.Errorf("an answer that was broken off: got %q and no error", got)
			}
		})
	}
}
