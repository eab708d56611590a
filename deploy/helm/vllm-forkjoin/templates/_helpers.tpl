{{- define "forkjoin.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The name of the release, and of what all its models share. A pod's name has at most 63 characters, of which a Deployment
     puts 17 behind its own: a longer one would lose the dash that forkjoin.series looks for. */}}
{{- define "forkjoin.release" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" }}
{{- else if contains (include "forkjoin.name" .) .Release.Name }}
{{- .Release.Name | trunc 46 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "forkjoin.name" .) | trunc 46 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* The name of a model's own things. */}}
{{- define "forkjoin.fullname" -}}
{{- $release := include "forkjoin.release" . }}
{{- with .Values.name }}
{{- printf "%s-%s" ($release | trunc (sub 45 (len .) | int) | trimSuffix "-") . }}
{{- else }}
{{- $release }}
{{- end }}
{{- end }}

{{/* The labels of all that belongs to a model, or to the release where it has one. */}}
{{- define "forkjoin.modelLabels" -}}
app.kubernetes.io/name: {{ include "forkjoin.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- with .Values.name }}
vllm-forkjoin/model: {{ . }}
{{- end }}
{{- end }}

{{/* Labels that never change: what selectors use. Call with (list $ "server"). */}}
{{- define "forkjoin.selector" -}}
{{ include "forkjoin.modelLabels" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "forkjoin.labels" -}}
{{- $root := index . 0 -}}
{{ include "forkjoin.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* repository with digest or tag. Call with (list $ image). */}}
{{- define "forkjoin.image" -}}
{{- $root := index . 0 -}}
{{- with index . 1 -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $root.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{- define "forkjoin.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "forkjoin.release" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "forkjoin.secret" -}}
{{ include "forkjoin.release" . }}-auth
{{- end }}

{{/* The claim that holds the cache, empty where the cache goes with the pod. */}}
{{- define "forkjoin.cacheClaim" -}}
{{- if .Values.cache.claim.existing }}{{ .Values.cache.claim.existing }}
{{- else if .Values.cache.claim.create }}{{ include "forkjoin.fullname" . }}-cache
{{- end }}
{{- end }}

{{- define "forkjoin.dialect" -}}
{{- if hasKey .Values.dialect.files .Values.dialect.name }}/etc/forkjoin/dialects/{{ .Values.dialect.name }}
{{- else }}{{ .Values.dialect.name }}
{{- end }}
{{- end }}

{{/* What a pod's grace must exceed, and does by marginSeconds. */}}
{{- define "forkjoin.grace" -}}
{{- with .Values.drain }}{{ add (int .preStopSeconds) (int .seconds) (int .marginSeconds) }}{{ end }}
{{- end }}

{{/* What Prometheus' series of a model's replicas have in common: a Deployment's pods end with two words. */}}
{{- define "forkjoin.series" -}}
namespace="{{ .Release.Namespace }}",pod=~"{{ include "forkjoin.fullname" . }}-[a-z0-9]+-[a-z0-9]{5}"
{{- end }}

{{/* Queue depth. vLLM's own count has parents of running threads in it, which are no load; without a dialect
     there are none, and no count of ours. */}}
{{- define "forkjoin.requestsQuery" -}}
sum({{ ternary "vllm:num_requests_waiting" "forkjoin:requests_waiting" (eq .Values.dialect.name "none") }}{ {{- include "forkjoin.series" . -}} })
{{- end }}

{{- define "forkjoin.threadsQuery" -}}
sum(forkjoin:threads_waiting{ {{- include "forkjoin.series" . -}} })
{{- end }}

{{/* The port that traces are sent to, empty where there are none. OTLP's own, unless the endpoint names one. */}}
{{- define "forkjoin.tracesPort" -}}
{{- with index .Values.server.config "otlp-traces-endpoint" }}
{{- regexFind ":[0-9]+(/|$)" . | trimAll ":/" | default "4317" }}
{{- end }}
{{- end }}
