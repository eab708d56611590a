{{/* The server's container and its pod, shared by the Deployment and the LeaderWorkerSet. */}}

{{/* What `forkjoin serve` is told, for every pod. Flags go before what the config file says. */}}
{{- define "forkjoin.args" -}}
{{- with include "forkjoin.model" . -}}
- {{ . | quote }}
{{- end }}
{{- with include "forkjoin.revision" . }}
- --revision={{ . }}
{{- end }}
{{- with .Values.model.servedName }}
- --served-model-name={{ . }}
{{- end }}
- --config
- /etc/forkjoin/server.yaml
- --dialect={{ include "forkjoin.dialect" . }}
- --shutdown-timeout={{ .Values.drain.seconds }}
{{- with .Values.server.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "forkjoin.env" -}}
- name: HF_HUB_OFFLINE
  value: {{ ternary "0" "1" (eq (include "forkjoin.scheme" .) "hf") | quote }}
{{- with .Values.auth.apiKey }}
{{- if or .existingSecret .value }}
- name: VLLM_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ default (include "forkjoin.secret" $) .existingSecret }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- with .Values.auth.hfToken }}
{{- if or .existingSecret .value }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ default (include "forkjoin.secret" $) .existingSecret }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- with .Values.server.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "forkjoin.mounts" -}}
- name: config
  mountPath: /etc/forkjoin
  readOnly: true
- name: cache
  mountPath: /cache
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- if eq (include "forkjoin.scheme" .) "pvc" }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "forkjoin.volumes" -}}
- name: config
  configMap:
    name: {{ include "forkjoin.fullname" . }}
    items:
      - {key: server.yaml, path: server.yaml}
      {{- range $name, $_ := .Values.dialect.files }}
      - {key: {{ $name | quote }}, path: {{ printf "dialects/%s" $name | quote }}}
      {{- end }}
- name: cache
  {{- with include "forkjoin.cacheClaim" . }}
  persistentVolumeClaim:
    claimName: {{ . }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.cache.sizeLimit }}
  {{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.sharedMemory.sizeLimit }}
{{- if eq (include "forkjoin.scheme" .) "pvc" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ include "forkjoin.address" . | splitList "/" | first }}
    readOnly: true
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "forkjoin.initContainers" -}}
{{- with .Values.initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* How a Deployment is rolled out: Recreate has no numbers. */}}
{{- define "forkjoin.strategy" -}}
type: {{ .type }}
{{- if eq .type "RollingUpdate" }}
{{- with .rollingUpdate }}
rollingUpdate:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* What every pod of this chart has: call with (list $ "server"). */}}
{{- define "forkjoin.podBasics" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
enableServiceLinks: false
securityContext:
  {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "forkjoin.placement" -}}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A server that answers requests: a replica, or the leader of a group. */}}
{{- define "forkjoin.server" -}}
- name: server
  image: {{ include "forkjoin.image" (list . .Values.image) | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    {{- include "forkjoin.args" . | nindent 4 }}
    {{- if .Values.multiNode.enabled }}
    {{- include "forkjoin.groupArgs" . | nindent 4 }}
    - --node-rank=0
    {{- end }}
  env:
    {{- include "forkjoin.env" . | nindent 4 }}
  ports:
    - {name: http, containerPort: 8000}
  startupProbe:
    httpGet: {path: /health, port: http}
    {{- toYaml .Values.probes.startup | nindent 4 }}
  readinessProbe:
    httpGet: {path: /ready, port: http}
    {{- toYaml .Values.probes.readiness | nindent 4 }}
  livenessProbe:
    httpGet: {path: /health, port: http}
    {{- toYaml .Values.probes.liveness | nindent 4 }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ .Values.drain.preStopSeconds }}
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  volumeMounts:
    {{- include "forkjoin.mounts" . | nindent 4 }}
{{- end }}

{{- define "forkjoin.groupArgs" -}}
- --tensor-parallel-size={{ mul (int .Values.multiNode.size) (int .Values.multiNode.gpusPerNode) }}
- --nnodes={{ .Values.multiNode.size }}
- --master-addr=$(LWS_LEADER_ADDRESS)
- --master-port={{ .Values.multiNode.masterPort }}
{{- end }}

{{/* Annotations that start pods anew when what they read has changed. */}}
{{- define "forkjoin.podAnnotations" -}}
checksum/config: {{ include "forkjoin.configMap" . | sha256sum }}
checksum/secret: {{ include (print $.Template.BasePath "/secret.yaml") . | sha256sum }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "forkjoin.podLabels" -}}
{{ include "forkjoin.labels" (list . "server") }}
{{- with .Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}
