// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"cmp"
	"context"
	"errors"
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
	var told map[string]service.Container
	var names []string
	var all bool
	if !w.ask(ctx, func() {
		told = w.expected(network, endpoints)
		names, all = w.containers.PublishedNames(network)
	}) {
		return
	}
	containers := byName(list)
	for id, e := range endpoints {
		s, listed := containers[e.container]
		if _, known := told[id]; known || !listed || s.runs() || !all {
			continue
		}
		c, err := w.recognize(ctx, network, id, e, s, names)
		if err != nil {
			w.log.WithField("container", e.container).WithError(err).Debug("its names are not known yet")
			continue
		}
		told[id] = c
	}
	w.ask(ctx, func() {
		w.containers.Expect(told, w.joining(endpoints, containers))
		for _, c := range told {
			w.lookLater(c.ID)
		}
	})
}

// ask has Run's goroutine do something, and waits for that.
func (w *Watcher) ask(ctx context.Context, fn func()) bool {
	done := make(chan struct{})
	select {
	case w.inbox <- func() { defer close(done); fn() }:
	case <-ctx.Done():
		return false
	}
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// byName are the containers of a list by each of their names.
func byName(list []summary) map[string]summary {
	out := make(map[string]summary, len(list))
	for _, s := range list {
		for _, name := range s.Names {
			out[strings.TrimPrefix(name, "/")] = s
		}
	}
	return out
}

// recognize finds which of others' names a container has that is being started before anybody could look at it: the
// engine's resolver, which takes no container's lock, answers those with its address already. It answers its id, too, as
// soon as it answers for it at all.
func (w *Watcher) recognize(ctx context.Context, network, endpoint string, e attached, s summary, names []string) (service.Container, error) {
	c := service.Container{
		ID: s.ID, Name: e.container, Phase: service.PhaseStarting, Labels: ownLabels(s.Labels), Source: service.SourceDocker,
	}
	if w.answers == nil || !e.addr.IsValid() || len(s.ID) < shortID {
		return c, errors.New("there is nobody to ask")
	}
	if known, err := w.answers(ctx, network, s.ID[:shortID], e.addr); err != nil || !known {
		return c, cmp.Or(err, errors.New("the engine's resolver does not know it"))
	}
	var aliases []string
	for _, name := range names {
		has, err := w.answers(ctx, network, name, e.addr)
		if err != nil {
			return c, err
		}
		if has && !strings.EqualFold(name, c.Name) {
			aliases = append(aliases, name)
		}
	}
	c.Aliases = map[string][]string{endpoint: aliases}
	return c, nil
}

// joining are the networks of ours that the containers of endpoints are on, or will be: of a container that is being started
// the engine's list has them all, though it tells no names on them.
func (w *Watcher) joining(endpoints map[string]attached, containers map[string]summary) map[string][]string {
	out := make(map[string][]string)
	for id, e := range endpoints {
		out[id] = w.networksOf(containers[e.container].NetworkSettings.Networks)
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
func (w *Watcher) expected(network string, endpoints map[string]attached) map[string]service.Container {
	byName := make(map[string]*record, len(w.records))
	for _, r := range w.records {
		if r.info != nil {
			byName[strings.TrimPrefix(r.info.Name, "/")] = r
		}
	}
	out := make(map[string]service.Container)
	for endpoint, e := range endpoints {
		r := byName[e.container]
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
