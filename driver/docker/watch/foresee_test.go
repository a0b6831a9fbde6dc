// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/service"
)

// followAndAsk follows an engine and asks whose the endpoints of n1 are.
func followAndAsk(t *testing.T, e *fakeEngine, change ...func(*Watcher)) (*fakeServices, func() map[string]service.Container) {
	var w *Watcher
	f := follow(t, e, append(change, func(made *Watcher) { w = made })...)
	return f, func() map[string]service.Container {
		w.Introduce(context.Background(), "n1")
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.expected
	}
}

// TestIntroduce has the names of a container that is being started, so that its lock is held, known from before.
func TestIntroduce(t *testing.T) {
	for name, made := range map[string]func(e *fakeEngine, c object){
		"created while we listen": func(e *fakeEngine, c object) { e.create(c); e.emit(id(2), "create") },
		"there before us":         nil,
	} {
		for _, api := range bothEngines {
			t.Run(name+"/"+api, func(t *testing.T) {
				e := shop(t, api, 1)
				if made == nil {
					e.create(web(api, 2))
				}
				f, ask := followAndAsk(t, e)
				eventually(t, func() bool { return f.synced() == 1 })
				if made != nil {
					made(e, web(api, 2))
				}
				eventually(t, func() bool { return f.phase(id(2)) == service.PhaseStopped })
				release := e.hold(id(2))
				defer release()
				e.mu.Lock()
				e.attached = map[string]map[string]string{"n1": {"shop-web-1": "e1", "shop-web-2": "e2", "foreign": "e3"}}
				e.mu.Unlock()
				told := ask()
				require.Contains(t, told, "e2")
				assert.Equal(t, map[string][]string{"e2": {"web", "www"}}, told["e2"].Aliases)
				assert.Equal(t, map[string]string{"mustang.weight": "3"}, told["e2"].Labels)
				assert.Equal(t, "shop-web-2", told["e2"].Name)
				assert.Equal(t, []string{"web", "www"}, told["e1"].Aliases["e1"])
				assert.Len(t, told, 2)
				f.mu.Lock()
				assert.Equal(t, map[string][]string{"e1": {"n1"}, "e2": {"n1"}, "e3": nil}, f.joining)
				f.mu.Unlock()
				e.mu.Lock()
				assert.Equal(t, 1, e.inspects[id(2)])
				e.mu.Unlock()
			})
		}
	}
}

// TestIntroduceAfterRename has Compose name a replica that takes another's place.
func TestIntroduceAfterRename(t *testing.T) {
	e := shop(t, "1.56", 0)
	f, ask := followAndAsk(t, e)
	eventually(t, func() bool { return f.synced() == 1 })
	c := web("1.56", 1)
	c["Name"] = "/abc_shop-web-1"
	e.create(c)
	e.emit(id(1), "create")
	eventually(t, func() bool { return f.phase(id(1)) == service.PhaseStopped })
	release := e.hold(id(1))
	defer release()
	e.emit(id(1), "rename", "oldName", "/abc_shop-web-1", "name", "shop-web-1")
	e.emitNetwork("n2", "create", "name", "last", "type", "mustang")
	eventually(t, func() bool { return f.name("n2") == "last" })
	e.mu.Lock()
	e.attached = map[string]map[string]string{"n1": {"shop-web-1": "e1"}}
	e.mu.Unlock()
	assert.Equal(t, []string{"web", "www"}, ask()["e1"].Aliases["e1"])
}

// TestLateInspect has a start win against the inspect of what was created: nothing is known, and nobody waits for it.
func TestLateInspect(t *testing.T) {
	e := shop(t, "1.56", 0)
	f, ask := followAndAsk(t, e, func(w *Watcher) { w.timing.early = 20 * time.Millisecond })
	eventually(t, func() bool { return f.synced() == 1 })
	var release []func()
	for n := 1; n <= 20; n++ {
		release = append(release, e.hold(id(n)))
		e.run(web("1.56", n))
		e.emit(id(n), "create")
	}
	e.mu.Lock()
	e.attached = map[string]map[string]string{"n1": {"shop-web-1": "e1"}}
	e.mu.Unlock()
	assert.Empty(t, ask())
	e.run(web("1.56", 21))
	e.emit(id(21), "start")
	eventually(t, func() bool { return f.phase(id(21)) == service.PhaseReady }, "the inspects of others are in nobody's way")
	for n, r := range release {
		r()
		e.emit(id(n+1), "start")
	}
	for n := 1; n <= 20; n++ {
		eventually(t, func() bool { return f.phase(id(n)) == service.PhaseReady })
	}
	assert.Len(t, ask(), 1)
}

// TestRecognize has a start win against the inspect of what was created: the engine's resolver says which names of others
// the container has, and where it does not know all, nothing is told.
func TestRecognize(t *testing.T) {
	for _, test := range []struct {
		name     string
		answered []string // with the container's address
		err      error
		unread   bool // another's names
		own      string
		told     bool
		aliases  []string
	}{
		{"a replica", []string{id(2)[:12], "web", "shop-web-2", "db"}, nil, false, "shop-web-2", true, []string{"web"}},
		{"a stranger", []string{id(2)[:12], "shop-web-2"}, nil, false, "shop-web-2", true, nil},
		{"one whose own name is another's alias", []string{id(2)[:12], "web"}, nil, false, "web", true, nil},
		{"one that the resolver does not know yet", nil, nil, false, "shop-web-2", false, nil},
		{"a resolver that fails", []string{id(2)[:12], "web"}, errors.New("refused"), false, "shop-web-2", false, nil},
		{"another with a port is not known either", []string{id(2)[:12], "web"}, nil, true, "shop-web-2", false, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := shop(t, "1.56", 0)
			f, ask := followAndAsk(t, e, func(w *Watcher) {
				w.timing.early = 20 * time.Millisecond
				w.answers = func(_ context.Context, network, name string, addr netip.Addr) (bool, error) {
					assert.Equal(t, "n1", network)
					assert.Equal(t, "10.0.0.9", addr.String())
					return slices.Contains(test.answered, name), test.err
				}
			})
			f.published, f.unread = []string{"api", "web"}, test.unread
			eventually(t, func() bool { return f.synced() == 1 })
			release := e.hold(id(2))
			defer release()
			c := web("1.56", 2)
			c["Name"] = "/" + test.own
			e.create(c)
			e.emit(id(2), "create")
			e.mu.Lock()
			e.attached = map[string]map[string]string{"n1": {test.own: "e2"}}
			e.mu.Unlock()
			told, is := ask()["e2"]
			require.Equal(t, test.told, is)
			assert.Equal(t, test.aliases, told.Aliases["e2"])
			if is {
				assert.Equal(t, map[string]string{"mustang.weight": "3"}, told.Labels)
				assert.Equal(t, test.own, told.Name)
			}
		})
	}
}

// TestIntroduceAtBoot asks an engine that calls us before it serves.
func TestIntroduceAtBoot(t *testing.T) {
	e := shop(t, "1.56", 1)
	e.unreachable = true
	_, ask := followAndAsk(t, e)
	start := time.Now()
	assert.Empty(t, ask())
	assert.Less(t, time.Since(start), introduceWithin/2)
}
