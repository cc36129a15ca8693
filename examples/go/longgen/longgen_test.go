package longgen

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"strings"
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

func TestPromptsGoOnWithWhatTheSessionHolds(t *testing.T) {
	ctx := context.Background()
	model, err := Open(os.Getenv("LONGGEN_MODEL"))
	if err != nil {
		t.Fatal(err)
	}
	defer model.Close()
	session, err := model.NewSession(512)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	first, _ := model.Prompt("Wherefore art thou here?")
	second, _ := model.Prompt("Wherefore art thou there?")
	common := 0
	for common < len(first) && first[common] == second[common] {
		common++
	}
	check := func(session *Session, tokens []uint32, common, reused int) {
		t.Helper()
		var last, all int
		did, err := session.Prompt(ctx, tokens, func(done, total int) bool { last, all = done, total; return true })
		expected := Prompted{common, reused, len(tokens) - reused, 0, -1}
		if err != nil || did != expected || session.Len() != len(tokens) {
			t.Errorf("%+v of %+v, %d tokens: %v", did, expected, session.Len(), err)
		}
		if last != did.Computed || all != did.Computed {
			t.Errorf("%d of %d tokens are told", last, all)
		}
	}
	generate := func(session *Session) string {
		text := make(chan string, 1024)
		if _, err := session.Generate(ctx, nil, Options{MaxTokens: 9}, text); err != nil {
			t.Fatal(err)
		}
		var answer strings.Builder
		for part := range text {
			answer.WriteString(part)
		}
		return answer.String()
	}
	check(session, first, 0, 0)
	check(session, first, len(first), len(first))
	check(session, second, common, common)
	points, err := session.RestorePoints()
	if err != nil || !sort.IntsAreSorted(points) || session.RestoreBytes() > 0 && len(points) == 0 {
		t.Errorf("restore points at %v: %v", points, err)
	}

	// The same after a restart, and in a session that has computed everything.
	path := filepath.Join(t.TempDir(), "session")
	if err := session.Save(ctx, path, nil); err != nil {
		t.Fatal(err)
	}
	loaded, err := model.Load(ctx, path, 300, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	fresh, _ := model.NewSession(512)
	defer fresh.Close()
	check(loaded, second, len(second), len(second)-1)
	check(fresh, second, 0, 0)
	answer := generate(session)
	if answer != generate(loaded) || answer != generate(fresh) {
		t.Errorf("other answers than %q", answer)
	}

	if kept, err := loaded.Rewind(len(second) - 3); err != nil || kept != len(second)-3 || loaded.Len() != kept {
		t.Errorf("%d tokens are kept, %d there: %v", kept, loaded.Len(), err)
	}
	var failed *Error
	if _, err := loaded.Rewind(1000); !errors.As(err, &failed) {
		t.Errorf("more tokens than there are: %v", err)
	}
	if _, err := model.Load(ctx, path+".none", 300, nil); !errors.As(err, &failed) || !strings.Contains(err.Error(), path) {
		t.Errorf("a file that is not there: %v", err)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := loaded.Prompt(done, first, nil); err != context.Canceled {
		t.Errorf("a prompt whose context is done: %v", err)
	}
	if err := loaded.Save(done, path, nil); err != context.Canceled {
		t.Errorf("saving whose context is done: %v", err)
	}
	if _, err := loaded.Prompt(ctx, nil, nil); !errors.As(err, &failed) {
		t.Errorf("a prompt of nothing: %v", err)
	}
}
