// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/service"
)

// answers is an engine that says the same whatever it is asked of a kind.
type answers struct{ networks, network, list, container string }

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	body := a.container
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/networks"):
		body = a.networks
	case strings.Contains(path, "/networks/"):
		body = a.network
	case strings.HasSuffix(path, "/containers/json"):
		body = a.list
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{}, Request: r}, nil
}

// settle runs what is posted until no inspect is under way.
func (w *Watcher) settle() {
	for w.fresh.running+w.slow.running+w.early.running > 0 || len(w.inbox) > 0 {
		(<-w.inbox)()
	}
}

// FuzzEngine follows an engine whose lists, inspects and events are any JSON: what is told of containers makes sense, and
// what the engine has not said clearly does not count as gone.
func FuzzEngine(f *testing.F) {
	inspect, err := json.Marshal(web("1.56", 1))
	require.NoError(f, err)
	old, err := json.Marshal(web("1.41", 1))
	require.NoError(f, err)
	networks := `[{"Id":"n1","Name":"shop_front","Driver":"mustang:latest"},{"Id":"n0","Driver":"bridge"}]`
	list := `[{"Id":"` + id(1) + `","Names":["/shop-web-1"],"State":"running","NetworkSettings":{"Networks":{"shop_front":{"NetworkID":"n1"},"x":null}}},{"State":"created","NetworkSettings":{"Networks":{"shop_front":{}}}}]`
	network := `{"Id":"n1","Containers":{"c":{"EndpointID":"e1","Name":"shop-web-1"}}}`
	of := func(action, more string) string {
		return `{"Type":"container","Action":"` + action + `","Actor":{"ID":"` + id(1) + `","Attributes":{` + more + `}}}`
	}
	life := of("start", "") + of("health_status: unhealthy", "") + of("kill", `"signal":"15"`) + of("rename", `"name":"/x","oldName":"y"`) + of("pause", "") +
		of("unpause", "") + of("die", "") + `{"Type":"network","Action":"connect","Actor":{"ID":"n1","Attributes":{"container":"` + id(1) + `","type":"mustang","name":"z"}}}` + of("destroy", "")
	f.Add(networks, network, list, string(inspect), life)
	f.Add(networks, network, list, string(old), of("kill", `"signal":"SIGRTMIN+99999999999"`)+of("create", "")+of("connect", "")+of("kill", `"signal":"-9"`))
	f.Add("null", "null", "null", "null", "null")
	f.Add("[null]", `{}`, `[null]`, `{}`, `{"Type":"network","Action":"destroy","Actor":{"ID":"n1","Attributes":{"type":"mustang"}}}`)
	f.Add(`{"message":"x"}`, `{"Id":"n2","Containers":null}`, `[{"Id":""}]`, `{"Id":"`+id(1)+`","State":{"Health":null,"Pid":-1},"Config":{"StopTimeout":9223372036854775807},"NetworkSettings":{"Networks":{"shop_front":null}}}`, of("start", ""))
	f.Fuzz(func(t *testing.T, networks, network, list, inspect, stream string) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		told := newFakeServices()
		client := NewClient("/nonexistent")
		client.http = &http.Client{Transport: answers{networks, network, list, inspect}}
		w := New(Options{Client: client, Containers: told, Networks: told, Log: log})
		w.timing.retryMin, w.timing.retryMax, w.timing.settle, w.timing.stop = time.Hour, time.Hour, time.Hour, time.Hour
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		w.ctx = ctx
		nets, err := client.networks(ctx)
		if err != nil {
			return // the session ends, and is tried again
		}
		require.NotNil(t, nets, "no list is not an empty one: all networks would be collected")
		known, _, err := w.known(ctx)
		if err == nil {
			for _, n := range nets {
				if isDriver(n.Driver, w.driver) {
					require.Contains(t, known, n.ID)
				}
			}
			var said struct {
				ID string `json:"Id"`
			}
			for n := range known { // what cannot be read is no network without endpoints
				require.NoError(t, json.NewDecoder(strings.NewReader(network)).Decode(&said))
				require.Equal(t, said.ID, n)
			}
		}
		summaries, err := client.list(ctx)
		if err != nil {
			return
		}
		w.listed(nets, summaries)
		w.settle()
		for d := json.NewDecoder(strings.NewReader(stream)); ; w.settle() {
			var m events.Message
			if d.Decode(&m) != nil {
				break
			}
			w.event(m)
		}
		require.LessOrEqual(t, told.syncs, 1)
		for id, c := range told.containers {
			require.Equal(t, id, c.ID)
			require.Contains(t, []service.Phase{service.PhaseReady, service.PhaseStarting, service.PhaseDraining, service.PhaseUnhealthy, service.PhasePaused, service.PhaseStopped}, c.Phase)
			require.Equal(t, service.SourceDocker, c.Source)
			for endpoint, names := range c.Aliases {
				require.NotEmpty(t, endpoint)
				require.NotContains(t, names, "")
			}
			for label := range c.Labels {
				require.True(t, strings.HasPrefix(label, labelPrefix))
			}
		}
	})
}
