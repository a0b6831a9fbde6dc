// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"strings"
	"time"

	"github.com/mustang-net/mustang/service"
)

// introduceWithin is how long a start waits at most for the names of containers.
const introduceWithin = time.Second

// foresee looks at a container that does not run: while it is started its lock is held, and an inspect would wait.
func (w *Watcher) foresee(id string) {
	if w.records[id] == nil {
		w.enqueue(w.record(id), &w.early)
	}
}

// runs tells it of a container in a list.
func (s summary) runs() bool {
	switch s.State {
	case "running", "paused", "restarting":
		return true
	}
	return false
}

// concerns tells whether a container in a list is on a network of ours.
func (w *Watcher) concerns(s summary) bool {
	for name, a := range s.NetworkSettings.Networks {
		if a != nil && w.isOurs(a.NetworkID, name) {
			return true
		}
	}
	return false
}

// Introduce tells the services whose the endpoints of a network are, also of containers that are being started: events
// tell of those only when they run. It is for calls of the plugin, which hold the lock of the container that starts:
// what it asks the engine takes no such lock, and it does not wait long. While the engine is not followed, as when it
// starts and calls before it answers, nothing is told.
func (w *Watcher) Introduce(ctx context.Context, network string) {
	if !w.following.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, introduceWithin)
	defer cancel()
	endpoints, err := w.client.endpoints(ctx, network)
	var list []summary
	if err == nil {
		list, err = w.client.list(ctx)
	}
	if err != nil {
		w.log.WithError(err).Debug("not known whose the endpoints of the network are")
		return
	}
	done := make(chan struct{})
	select {
	case w.inbox <- func() {
		defer close(done)
		told := w.expected(network, endpoints)
		w.containers.Expect(told, w.joining(endpoints, list))
		for _, c := range told {
			w.lookLater(c.ID)
		}
	}:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// joining are the networks of ours that the containers of endpoints are on, or will be: of a container that is being started
// the engine's list has them all, though it tells no names on them.
func (w *Watcher) joining(endpoints map[string]string, list []summary) map[string][]string {
	byName := make(map[string]summary, len(list))
	for _, s := range list {
		for _, name := range s.Names {
			byName[strings.TrimPrefix(name, "/")] = s
		}
	}
	out := make(map[string][]string)
	for endpoint, name := range endpoints {
		out[endpoint] = w.networksOf(byName[name].NetworkSettings.Networks)
	}
	return out
}

// lookLater looks again at a container that does not run, when its start has been refused or not: no event tells that it was
// connected to a network, or disconnected, meanwhile.
func (w *Watcher) lookLater(id string) {
	time.AfterFunc(w.timing.settle, func() {
		w.post(func() {
			if r := w.records[id]; r != nil && !w.running[id] && r.look.stage == idle {
				w.enqueue(r, &w.early)
			}
		})
	})
}

// expected are the containers of endpoints on a network, by what is known of them from before their start.
func (w *Watcher) expected(network string, endpoints map[string]string) map[string]service.Container {
	byName := make(map[string]*record, len(w.records))
	for _, r := range w.records {
		if r.info != nil {
			byName[strings.TrimPrefix(r.info.Name, "/")] = r
		}
	}
	out := make(map[string]service.Container)
	for endpoint, name := range endpoints {
		r := byName[name]
		if r == nil {
			continue
		}
		for netName, a := range r.info.NetworkSettings.Networks {
			// Before its first start a container has no network's id on older engines.
			if a != nil && (a.NetworkID == network || a.NetworkID == "" && w.networks[network] == netName) {
				c := r.facts(service.PhaseStarting)
				c.Aliases = map[string][]string{endpoint: cleanAliases(*r.info, a.Aliases)}
				out[endpoint] = c
			}
		}
	}
	return out
}
