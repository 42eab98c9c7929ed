<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22.0" styleCategories="Symbology">
  <pipe>
    <rasterrenderer type="singlebandpseudocolor" band="1" opacity="1" alphaBand="-1" nodataColor="" classificationMin="0" classificationMax="0.5">
      <rasterTransparency/>
      <minMaxOrigin>
        <limits>None</limits>
        <extent>WholeRaster</extent>
        <statAccuracy>Estimated</statAccuracy>
      </minMaxOrigin>
      <rastershader>
        <colorrampshader colorRampType="INTERPOLATED" classificationMode="1" clip="0" minimumValue="0" maximumValue="0.5" labelPrecision="2">
          <item value="0" label="0: all eight passes agree" color="#f7fcf5" alpha="0"/>
          <item value="0.05" label="0.05" color="#dadaeb" alpha="90"/>
          <item value="0.1" label="0.1" color="#bcbddc" alpha="140"/>
          <item value="0.2" label="0.2" color="#807dba" alpha="200"/>
          <item value="0.35" label="0.35" color="#54278f" alpha="235"/>
          <item value="0.5" label="0.5: four passes 0, four passes 1" color="#2d004b" alpha="255"/>
        </colorrampshader>
      </rastershader>
    </rasterrenderer>
    <brightnesscontrast brightness="0" contrast="0" gamma="1"/>
    <huesaturation saturation="0" grayscaleMode="0"/>
    <rasterresampler maxOversampling="2"/>
  </pipe>
  <blendMode>0</blendMode>
</qgis>
