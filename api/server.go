// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/service"
)

const (
	// maxBody leaves room for an apply of some 100,000 services.
	maxBody = 64 << 20
	// shutdownGrace is how long requests under way may take once the daemon is told to stop.
	shutdownGrace = 5 * time.Second
)

// drainRequest is the body of POST /v1/drain.
type drainRequest struct {
	Ref  string `json:"ref"`
	Undo bool   `json:"undo,omitempty"`
}

// endpointRequest is the body of POST /v1/endpoints.
type endpointRequest struct {
	IfName string `json:"ifname"`
	Netns  string `json:"netns"`
}

// errorBody is the body of every answer whose status is 400 or more.
type errorBody struct {
	Error string `json:"error"`
}

// Observer is told of every request: its pattern, such as "GET /v1/services", how long it took, and the error it was answered with.
type Observer func(request string, took time.Duration, err error)

// Serve answers requests on l with host until ctx ends; requests under way then have 5 seconds to
// finish. It closes l. The error is nil after a stop by ctx. An observer may be nil.
func Serve(ctx context.Context, l net.Listener, host Host, log logrus.FieldLogger, observe Observer) error {
	lines := &logWriter{log}
	srv := &http.Server{
		Handler:           handler(ctx, host, log, observe),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          stdLogger(lines),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve the API on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		log.WithError(err).Warn("API requests were cut off by the stop")
		_ = srv.Close() // its listener is closed already
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the API on %s: %w", l.Addr(), err)
	}
	return nil
}

// handler maps the paths of the contract to the Host's methods.
func handler(ctx context.Context, host Host, log logrus.FieldLogger, observe Observer) http.Handler {
	if observe == nil {
		observe = func(string, time.Duration, error) {}
	}
	s := server{host: host}
	mux := http.NewServeMux()
	route := func(pattern string, answer func(*http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			result, err := answer(r)
			took := time.Since(start)
			observe(pattern, took, err)
			status := http.StatusOK
			if err != nil {
				status = statusOf(err)
				result = errorBody{told(log, pattern, took, status, err)}
			} else {
				log.WithFields(logrus.Fields{"method": pattern, "took": took.Round(time.Microsecond)}).Debug("API request answered")
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			// The client has gone if this fails; nobody is left to tell.
			_ = json.NewEncoder(w).Encode(result)
		})
	}
	route("GET /v1/services", s.services)
	route("POST /v1/services", s.addService)
	route("PUT /v1/services", s.applyServices)
	route("DELETE /v1/services", s.removeService)
	route("POST /v1/drain", s.drain)
	route("GET /v1/endpoints", s.endpoints)
	route("POST /v1/endpoints", s.addEndpoint)
	route("DELETE /v1/endpoints", s.removeEndpoint)
	route("GET /v1/networks", s.networks)
	route("GET /v1/ports", s.ports)
	route("GET /v1/status", s.status)
	route("GET /v1/verify", func(r *http.Request) (any, error) { return s.host.Verify(r.Context(), false) })
	route("POST /v1/verify", func(r *http.Request) (any, error) { return s.host.Verify(r.Context(), true) })
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) { s.monitor(ctx, w, r) })
	for pattern, answer := range cniRoutes(host) {
		route(pattern, answer)
	}
	route("/", func(r *http.Request) (any, error) {
		return nil, notFound{fmt.Errorf("%s %s is not in this daemon's API: command line and daemon may be of different versions: restart the daemon after an upgrade", r.Method, r.URL.Path)}
	})
	return mux
}

// told logs a failure, and returns what the client is told of it: with the number by which the log has it, unless the client
// is a person who has just typed what is wrong.
func told(log logrus.FieldLogger, pattern string, took time.Duration, status int, err error) string {
	id := fmt.Sprintf("%08x", rand.Uint32())
	log = log.WithError(err).WithFields(logrus.Fields{"request": id, "method": pattern, "status": status, "took": took.Round(time.Microsecond)})
	text := fmt.Sprintf("%v (request %s)", err, id)
	switch {
	case status == http.StatusInternalServerError:
		log.Error("API request failed")
	case strings.Contains(pattern, " /v1/cni/"):
		log.Error("CNI call failed")
	default:
		log.Debug("API request refused")
		return err.Error()
	}
	return text
}

type server struct{ host Host }

func (s server) services(r *http.Request) (any, error) {
	views, err := s.host.Services(r.Context())
	if err != nil {
		return nil, err
	}
	return ServicesOf(views), nil
}

func (s server) addService(r *http.Request) (any, error) {
	var body Service
	if err := read(r, &body); err != nil {
		return nil, err
	}
	specs, err := body.Specs()
	if err != nil {
		return nil, badRequest{err}
	}
	if len(specs) != 1 {
		return nil, badRequest{errors.New("add one frontend at a time, or apply them")}
	}
	view, err := s.host.AddService(r.Context(), specs[0])
	if err != nil {
		return nil, err
	}
	return ServiceOf(view), nil
}

func (s server) applyServices(r *http.Request) (any, error) {
	var body []Service
	if err := read(r, &body); err != nil {
		return nil, err
	}
	specs := make([]service.Spec, 0, len(body))
	for i, one := range body {
		expanded, err := one.Specs()
		if err != nil {
			return nil, badRequest{fmt.Errorf("service %d of the list: %w", i+1, err)}
		}
		specs = append(specs, expanded...)
	}
	return s.host.ApplyServices(r.Context(), specs)
}

func (s server) removeService(r *http.Request) (any, error) {
	ref, err := reference(r)
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.host.RemoveService(r.Context(), ref)
}

func (s server) drain(r *http.Request) (any, error) {
	var body drainRequest
	if err := read(r, &body); err != nil {
		return nil, err
	}
	if body.Ref == "" {
		return nil, badRequest{errors.New("ref is missing")}
	}
	return struct{}{}, s.host.Drain(r.Context(), body.Ref, body.Undo)
}

func (s server) endpoints(r *http.Request) (any, error) {
	list, err := s.host.Endpoints(r.Context())
	return some(list), err
}

func (s server) addEndpoint(r *http.Request) (any, error) {
	var body endpointRequest
	if err := read(r, &body); err != nil {
		return nil, err
	}
	if body.IfName == "" || body.Netns == "" {
		return nil, badRequest{errors.New("ifname and netns are needed")}
	}
	return s.host.AddEndpoint(r.Context(), body.IfName, body.Netns)
}

func (s server) removeEndpoint(r *http.Request) (any, error) {
	ref, err := reference(r)
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.host.RemoveEndpoint(r.Context(), ref)
}

func (s server) networks(r *http.Request) (any, error) {
	list, err := s.host.Networks(r.Context())
	return some(list), err
}

func (s server) ports(r *http.Request) (any, error) {
	list, err := s.host.Ports(r.Context())
	return some(list), err
}

func (s server) status(r *http.Request) (any, error) { return s.host.Status(r.Context()) }

// read decodes the one JSON value of a body. Unknown keys are refused: a setting that this version
// does not know must not be lost in silence.
func read(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return badRequest{fmt.Errorf("read the request: %w", err)}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return badRequest{errors.New("read the request: more than one JSON value")}
	}
	return nil
}

func reference(r *http.Request) (string, error) {
	if ref := r.URL.Query().Get("ref"); ref != "" {
		return ref, nil
	}
	return "", badRequest{errors.New("ref is missing")}
}

// some makes nil lists empty ones, which JSON writes as [] and not as null.
func some[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
