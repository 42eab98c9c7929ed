/** Form that starts a map: raster, model and options. */

import { listModels, listRasters, startJob, uploadRaster, type Inputs, type Model, type Raster, type Session } from './api';
import { announce } from './announce';
import { button, fill, h } from './dom';
import { failureNotice } from './failure';
import { localise, t } from './language';
import { rememberUpload, uploadedRasters } from './rasternames';
import { megapixels, number } from './quantities';

const AUTO = 'auto';

export const fits = (model: Model, raster: Raster): boolean => raster.fits.includes(model.name);

/** Return the bands that a model needs and a raster lacks. */
export function missingBands(model: Model, raster: Raster): string[] {
  return model.contract.bands.map((band) => band.name).filter((name) => !raster.bands.includes(name));
}

export class StartForm {
  readonly element: HTMLElement;
  private rasters: Raster[] = [];
  private models: Model[] = [];
  private readonly notice = h('div');
  private readonly raster = h('select', { id: 'raster', required: true });
  private readonly rasterFacts = h('div', { class: 'facts soft', id: 'raster-facts' });
  private readonly model = h('select', { id: 'model', required: true });
  private readonly modelFacts = h('div', { class: 'facts soft', id: 'model-facts' });
  private readonly threshold = h('input', { id: 'threshold', type: 'number', min: 0.01, max: 0.99, step: 'any', inputmode: 'decimal' });
  private readonly thresholdHint = h('p', { class: 'soft', id: 'threshold-hint' });
  private readonly minimum = h('input', { id: 'minimum', type: 'number', min: 0, step: 'any', inputmode: 'decimal', value: 0 });
  private readonly bands = h('div', { class: 'checks' });
  private readonly submit = h('button', { type: 'submit', class: 'button primary' }, () => t().startMap);
  private readonly uploading = h('div');
  private readonly file = h('input', { id: 'file', class: 'hidden-visually', type: 'file', accept: '.tif,.tiff,image/tiff' });

  constructor(
    session: Session,
    private readonly onStarted: () => void,
    private readonly onRasters: (rasters: Raster[]) => void,
  ) {
    this.raster.addEventListener('change', () => this.rasterChosen());
    this.model.addEventListener('change', () => this.describeModel());
    this.file.addEventListener('change', () => void this.upload());
    this.element = h(
      'section',
      { class: 'card', 'aria-labelledby': 'new-title' },
      h('h2', { id: 'new-title' }, () => t().newMap),
      this.notice,
      session.scope === 'read' ? h('p', { class: 'notice' }, () => t().cannotStart) : this.form(),
    );
    // The texts of options and descriptions depend on the selection, so they are rebuilt with it.
    localise(this.element, () => this.show());
    void this.load();
  }

  private form(): HTMLElement {
    const submit = (event: Event) => {
      event.preventDefault();
      void this.start();
    };
    return h(
      'form',
      { class: 'form', on: { submit } },
      h('label', { for: 'raster' }, () => t().raster),
      this.raster,
      this.rasterFacts,
      h('div', { class: 'upload' }, this.file, h('label', { for: 'file', class: 'button plain' }, () => t().upload)),
      this.uploading,
      h('label', { for: 'model' }, () => t().model),
      this.model,
      this.modelFacts,
      h(
        'details',
        {},
        h('summary', {}, () => t().moreOptions),
        h('label', { for: 'threshold' }, () => t().threshold),
        this.threshold,
        this.thresholdHint,
        h('label', { for: 'minimum' }, () => t().minimumArea),
        this.minimum,
        h('fieldset', {}, h('legend', {}, () => t().bandsTitle), h('p', { class: 'soft' }, () => t().bandsHint), this.bands),
      ),
      h('p', { class: 'soft' }, () => t().networkNotice),
      h('div', { class: 'actions' }, this.submit),
    );
  }

  private async load(): Promise<void> {
    try {
      const [listed, registered] = await Promise.all([listRasters(), listModels()]);
      this.rasters = [...uploadedRasters(), ...listed];
      this.models = registered;
      this.onRasters(this.rasters);
      fill(this.notice);
      this.show();
      this.rasterChosen();
    } catch (error) {
      fill(this.notice, failureNotice(() => t().newMap, error, () => void this.load()));
    }
  }

  private chosenRaster(): Raster | undefined {
    return this.rasters.find((raster) => raster.href === this.raster.value);
  }

  private show(): void {
    const [raster, model] = [this.raster.value, this.model.value];
    fill(this.raster, ...this.rasters.map((one) => h('option', { value: one.href }, rasterTitle(one))));
    if (!this.rasters.length) fill(this.raster, h('option', { value: '' }, t().noRasters));
    if (raster) this.raster.value = raster;
    this.showRaster();
    this.showModels();
    if (model && [...this.model.options].some((option) => option.value === model && !option.disabled)) this.model.value = model;
    this.describeModel();
  }

  private rasterChosen(): void {
    const raster = this.chosenRaster();
    fill(this.bands, ...(raster?.bands ?? []).map((band) => {
      const id = `band-${band}`;
      return h('span', {}, h('input', { type: 'checkbox', id, value: band, checked: true }), h('label', { for: id }, band));
    }));
    this.show();
  }

  private showRaster(): void {
    const raster = this.chosenRaster();
    if (!raster) return fill(this.rasterFacts);
    fill(
      this.rasterFacts,
      raster.synthetic ? h('p', { class: 'notice' }, t().syntheticRaster) : null,
      h('p', {}, t().rasterFacts(megapixels(raster.pixels), number(raster.resolution, raster.resolution % 1 ? 1 : 0), raster.crs)),
      h('p', {}, t().rasterBands(raster.bands.join(', '))),
      raster.inventory ? h('p', {}, t().withInventory) : null,
    );
  }

  private showModels(): void {
    const raster = this.chosenRaster();
    if (!raster) return fill(this.model);
    const fitting = this.models.filter((model) => fits(model, raster));
    const others = this.models.filter((model) => !fits(model, raster));
    const choice = (model: Model) => h('option', { value: modelReference(model) }, modelTitle(model));
    const refused = (model: Model) =>
      h('option', { value: modelReference(model), disabled: true }, `${modelTitle(model)}${missingBandsText(model, raster)}`);
    fill(
      this.model,
      fitting.length ? h('option', { value: AUTO }, t().automaticModel) : h('option', { value: '' }, t().noModel),
      fitting.length ? h('optgroup', { label: t().compatible }, ...fitting.map(choice)) : null,
      others.length ? h('optgroup', { label: t().incompatible }, ...others.map(refused)) : null,
    );
    this.submit.disabled = !fitting.length;
  }

  private describeModel(): void {
    const model = this.models.find((one) => modelReference(one) === this.model.value);
    this.thresholdHint.textContent = t().thresholdHint(model ? number(model.contract.threshold, 2) : null);
    if (!model) return fill(this.modelFacts);
    const { bands, scores, areas } = model.contract;
    const score = (name: string) => (scores?.[name] === undefined ? null : number(scores[name], 2));
    const [f1, precision, recall] = [score('f1'), score('precision'), score('recall')];
    fill(
      this.modelFacts,
      h('p', {}, t().modelBands(bands.map((band) => band.name).join(', '))),
      f1 && precision && recall ? h('p', {}, t().modelScores(f1, precision, recall)) : null,
      areas?.length ? h('p', {}, t().modelTrained(areas.join(', '))) : null,
    );
  }

  private async upload(): Promise<void> {
    const file = this.file.files?.[0];
    if (!file) return;
    const stop = new AbortController();
    const bar = h('progress', { max: 1, value: 0, 'aria-label': t().uploading(file.name, 0) });
    const text = h('p', { class: 'soft' }, t().uploading(file.name, 0));
    fill(this.uploading, text, bar, button(() => t().cancel, () => stop.abort()));
    try {
      const raster = await uploadRaster(
        file,
        (share) => {
          bar.value = share;
          text.textContent = t().uploading(file.name, Math.floor(share * 100));
        },
        stop.signal,
      );
      rememberUpload(raster);
      this.rasters = [raster, ...this.rasters];
      this.onRasters(this.rasters);
      this.show();
      this.raster.value = raster.href;
      this.rasterChosen();
      fill(this.uploading, h('p', { class: 'soft' }, () => t().uploaded(raster.name)));
      announce(t().uploaded(raster.name));
    } catch (error) {
      fill(this.uploading, stop.signal.aborted ? null : failureNotice(() => t().uploadFailed, error, () => void this.upload()));
    }
    if (stop.signal.aborted) this.file.value = '';
  }

  private inputs(): Inputs {
    const inputs: Inputs = { raster: { href: this.raster.value }, model: this.model.value };
    if (this.threshold.value) inputs.threshold = this.threshold.valueAsNumber;
    if (this.minimum.valueAsNumber > 0) inputs.minimum_area = this.minimum.valueAsNumber;
    const boxes = [...this.bands.querySelectorAll('input')];
    if (boxes.some((box) => !box.checked)) inputs.bands = boxes.filter((box) => box.checked).map((box) => box.value);
    return inputs;
  }

  private async start(): Promise<void> {
    this.submit.disabled = true;
    try {
      await startJob(this.inputs());
      fill(this.notice);
      announce(t().started);
      this.onStarted();
    } catch (error) {
      fill(this.notice, failureNotice(() => t().startFailed, error));
    }
    this.submit.disabled = false;
  }
}

const rasterTitle = (raster: Raster): string => (raster.synthetic ? `${raster.name} (${t().synthetic.toLowerCase()})` : raster.name);
const modelReference = (model: Model): string => `${model.name}/${model.version}`;
const modelTitle = (model: Model): string => t().modelOption(model.name, model.version, model.aliases.join(', '));

function missingBandsText(model: Model, raster: Raster): string {
  const bands = missingBands(model, raster);
  return bands.length ? `: ${t().missingBands(bands.join(', '))}` : '';
}
