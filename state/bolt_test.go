// SPDX-License-Identifier: Apache-2.0

package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/mustang-net/mustang/state"
)

func openFile(t *testing.T, path string) state.Store {
	t.Helper()
	s, err := state.Open(path, state.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// filled makes a state file with enough records for branch pages, and returns its path and content.
func filled(t *testing.T) (path string, content []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "state.db")
	s := openFile(t, path)
	require.NoError(t, s.Update(func(tx state.Tx) error {
		for i := range 2000 {
			if err := tx.Put("a", fmt.Sprintf("%05d", i), record{"some name", i}); err != nil {
				return err
			}
		}
		return nil
	}))
	require.NoError(t, s.Close())
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return path, content
}

func TestOpenMakesFileAndDirectoryPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "lib")
	path := filepath.Join(dir, "state.db")
	openFile(t, path)
	for name, want := range map[string]os.FileMode{dir: 0o700, path: 0o600} {
		info, err := os.Stat(name)
		require.NoError(t, err)
		require.Equal(t, want, info.Mode().Perm(), name)
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1, "the file made aside is gone")
}

func TestRecordsSurviveReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := openFile(t, path)
	require.NoError(t, put(s, "a", "k", record{"x", 1}))
	require.NoError(t, s.Close())
	_, records := contents(t, openFile(t, path), "a")
	require.Equal(t, []record{{"x", 1}}, records)
}

func TestOpenLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	first := openFile(t, path)
	start := time.Now()
	_, err := state.Open(path, state.Options{LockTimeout: 100 * time.Millisecond})
	require.ErrorIs(t, err, state.ErrLocked)
	require.ErrorContains(t, err, path)
	require.ErrorContains(t, err, "stop the mustang daemon")
	require.Less(t, time.Since(start), 900*time.Millisecond)

	// The next holder gets it as soon as the first lets go.
	time.AfterFunc(100*time.Millisecond, func() { _ = first.Close() })
	openFile(t, path)
}

func TestOpenRefusesNewerLayout(t *testing.T) {
	path, _ := filled(t)
	setLayout(t, path, `{"layout":7}`)
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	_, err = state.Open(path, state.Options{})
	require.ErrorIs(t, err, state.ErrNewer)
	require.EqualError(t, err, "state file "+path+": the state was written by a newer mustang (layout 7, this one knows 1): "+
		"install that version or move the file away")
	requireUntouched(t, path, before)
}

func TestOpenRefusesDamage(t *testing.T) {
	garbage := bytes.Repeat([]byte{0xa5}, 4096)
	damages := map[string]func(content []byte) []byte{
		"empty":             func([]byte) []byte { return nil },
		"a few bytes":       func(c []byte) []byte { return c[:100] },
		"one page":          func(c []byte) []byte { return c[:4096] },
		"metas only":        func(c []byte) []byte { return c[:8192] },
		"cut in the middle": func(c []byte) []byte { return c[:len(c)/2/4096*4096] },
		"text":              func([]byte) []byte { return bytes.Repeat([]byte("not a database\n"), 5000) },
		"metas overwritten": func(c []byte) []byte { return append(bytes.Repeat(garbage, 2), c[8192:]...) },
		"all pages overwritten": func(c []byte) []byte {
			return append(bytes.Clone(c[:8192]), bytes.Repeat([]byte{0xff}, len(c)-8192)...)
		},
		"zeroed pages": func(c []byte) []byte { return append(bytes.Clone(c[:8192]), make([]byte, len(c)-8192)...) },
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			path, content := filled(t)
			damaged := damage(content)
			require.NoError(t, os.WriteFile(path, damaged, 0o600))
			for range 2 { // the first try must not leave a lock behind
				_, err := state.Open(path, state.Options{LockTimeout: 200 * time.Millisecond})
				require.ErrorIs(t, err, state.ErrDamaged)
				require.ErrorContains(t, err, path)
				require.ErrorContains(t, err, "left untouched")
			}
			requireUntouched(t, path, damaged)
			// What the error advises works.
			require.NoError(t, os.Rename(path, path+".damaged"))
			openFile(t, path)
		})
	}
}

func TestOpenSaysWhatIsWrongWithAPage(t *testing.T) {
	const page = 4096
	for want, damage := range map[string]func(c []byte){
		"is another, or something else": func(c []byte) {
			for at := 2 * page; at < len(c); at += page {
				c[at]++
			}
		},
		"its checksum is another": func(c []byte) { copy(c, bytes.ReplaceAll(c, []byte("some name"), []byte("Some name"))) },
	} {
		path, content := filled(t)
		damage(content)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		_, err := state.Open(path, state.Options{})
		require.ErrorIs(t, err, state.ErrDamaged)
		require.ErrorContains(t, err, want)
		requireUntouched(t, path, content)
	}
}

func TestOpenSaysHowMuchIsLeftOfATruncatedFile(t *testing.T) {
	path, content := filled(t)
	require.NoError(t, os.Truncate(path, 16384))
	_, err := state.Open(path, state.Options{})
	require.ErrorContains(t, err, "damaged: 16384 bytes of ")
	requireUntouched(t, path, content[:16384])
}

func TestOpenRefusesOthersDatabases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "other.db")
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Close())
	_, err = state.Open(path, state.Options{})
	require.ErrorIs(t, err, state.ErrDamaged)
	require.ErrorContains(t, err, "not mustang's")
}

func TestOpenRefusesLayoutsThatNeverWere(t *testing.T) {
	for _, value := range []string{`{"layout":0}`, `{"layout":"x"}`, `{`} {
		path, _ := filled(t)
		setLayout(t, path, value)
		_, err := state.Open(path, state.Options{})
		require.ErrorIs(t, err, state.ErrDamaged, value)
	}
}

func TestOpenNeedsAFile(t *testing.T) {
	_, err := state.Open(t.TempDir(), state.Options{})
	require.ErrorContains(t, err, "open state file")
	_, err = state.Open("/dev/null/state.db", state.Options{})
	require.Error(t, err)
}

func setLayout(t *testing.T, path, value string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("layout"), []byte(value))
	}))
	require.NoError(t, db.Close())
}

func requireUntouched(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), "the file changed")
}

// Who writes while the disk is busy shares a transaction with the others; one that fails, or panics, takes nobody with it.
func TestWritesShareATransaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := openFile(t, path)
	const many = 200
	for _, odd := range []string{"", "fails", "panics"} {
		busy, goOn := make(chan struct{}), make(chan struct{})
		var group sync.WaitGroup
		group.Go(func() {
			assert.NoError(t, s.Update(func(tx state.Tx) error {
				close(busy)
				<-goOn
				return tx.Put("a", odd+"first", record{"first", 1})
			}))
		})
		<-busy
		before := state.Transactions(s)
		errs := make([]error, many)
		var started atomic.Int32
		for i := range many {
			group.Go(func() {
				started.Add(1)
				defer func() {
					if p := recover(); p != nil {
						errs[i] = fmt.Errorf("panic: %v", p)
					}
				}()
				errs[i] = s.Update(func(tx state.Tx) error {
					if err := tx.Put("a", fmt.Sprint(odd, i), record{"many", i}); err != nil || i != many/2 || odd == "" {
						return err
					}
					if odd == "panics" {
						panic("bug")
					}
					return errors.New("no")
				})
			})
		}
		for started.Load() < many {
			runtime.Gosched()
		}
		close(goOn)
		group.Wait()
		made, kept := state.Transactions(s)-before, 0
		require.NoError(t, s.View(func(tx state.Tx) error {
			for i := range many {
				var r record
				found, err := tx.Get("a", fmt.Sprint(odd, i), &r)
				require.NoError(t, err)
				require.Equal(t, errs[i] == nil, found)
				if found {
					kept++
				}
			}
			return nil
		}))
		if odd == "" {
			require.Equal(t, many, kept)
			require.Less(t, made, many)
		} else {
			require.Equal(t, many-1, kept)
			require.Error(t, errs[many/2])
		}
	}
	require.NoError(t, s.Close())
	openFile(t, path) // its sums are right
}
