package longgen

import (
	"context"
	"errors"
	"os"
	"testing"
)

// generate answers in a new session, and throws the text away.
func generate(ctx context.Context, t *testing.T, model *Model, options Options) (Result, error) {
	session, err := model.NewSession(512)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	tokens, err := model.Prompt("Wherefore?")
	if err != nil {
		t.Fatal(err)
	}
	text := make(chan string, 1024)
	return session.Generate(ctx, tokens, options, text)
}

func TestAnswersTellHowFarTheyAreAndHowTheyEnd(t *testing.T) {
	model, err := Open(os.Getenv("LONGGEN_MODEL"))
	if err != nil {
		t.Fatal(err)
	}
	defer model.Close()
	tokens, _ := model.Prompt("Wherefore?")
	var last, all int
	told := func(done, total int) bool {
		last, all = done, total
		return true
	}
	result, err := generate(context.Background(), t, model, Options{MaxTokens: 5, Progress: told})
	if err != nil || last != len(tokens) || all != len(tokens) {
		t.Errorf("%d of %d tokens are told of %d: %v", last, all, len(tokens), err)
	}
	hasEnd := result.Reason == StopEnd
	if hasEnd != (result.EndToken != TokenNone) || !hasEnd && (result.Tokens != 5 || result.PendingToken == TokenNone) {
		t.Errorf("%+v", result)
	}

	var stopped *Error
	_, err = generate(context.Background(), t, model, Options{Progress: func(int, int) bool { return false }})
	if !errors.As(err, &stopped) {
		t.Errorf("a prompt that is stopped is no error of the library: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err = generate(ctx, t, model, Options{}); err != context.Canceled {
		t.Errorf("a context that is done is not told: %v", err)
	}
}
